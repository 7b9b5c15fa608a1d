-- Rooms and their members as a file says, read again whenever it changes. For tests.
local path = module:get_option_string("ipop_rooms_file");
local muc = module:depends("muc");
local applied;

local function apply(text)
	local wanted = {};
	for room_jid, jid, affiliation in text:gmatch("(%S+) (%S+) (%S+)\n") do
		wanted[room_jid] = wanted[room_jid] or {};
		wanted[room_jid][jid] = affiliation;
	end
	for room_jid, members in pairs(wanted) do
		local room = muc.get_room_from_jid(room_jid);
		if not room then
			room = muc.create_room(room_jid);
			room:set_persistent(true);
			room:set_members_only(true);
			room:set_whois("anyone");
		end
		for jid, affiliation in pairs(members) do
			if room:get_affiliation(jid) ~= affiliation then
				room:set_affiliation(true, jid, affiliation);
			end
		end
		local gone = {};
		for jid in room:each_affiliation() do
			if not members[jid] then gone[#gone + 1] = jid; end
		end
		for _, jid in ipairs(gone) do room:set_affiliation(true, jid, "none"); end
		room:save(true);
	end
end

local function look()
	local file = io.open(path);
	if file then
		local text = file:read("*a");
		file:close();
		if text ~= applied then
			apply(text);
			applied = text;
			local done = io.open(path .. ".done", "w");
			done:write(text);
			done:close();
		end
	end
	return 0.05;
end

module:add_timer(0.01, look);
