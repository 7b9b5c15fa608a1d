//! Two nodes, a signal channel that loses, delays, repeats and reorders, agents that find paths, tunnels that roam.

use super::super::backoff::Rng;
use super::super::{Input, Link, LinkConfig, Output, Role, State, Verdict, timing};
use crate::xmpp::Reason;
use dataplane::{Path, Time};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashSet, VecDeque};
use std::time::Duration;

pub(super) fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Outputs of one link in any ten seconds. Twenty probes and a handful of attempts are normal.
const MOST_OUTPUTS: usize = 150;

#[derive(Clone, Debug)]
enum Signal {
    Initiate(String),
    Reply(String, Verdict),
    Accept(String),
    Terminate(String, Reason),
}

#[derive(Clone, Debug)]
enum Event {
    Arrives(usize, Signal),
    Input(usize, Input),
    /// The agents of both ends are ready for each other.
    Found(String),
    /// A handshake of this end has made its way over this path.
    Shaken(usize, Path),
    Tick,
}

pub(super) struct Agent {
    role: Role,
    started: Time,
    /// Knows the other one's credentials.
    ready: bool,
}

pub(super) struct End {
    pub(super) link: Link,
    config: LinkConfig,
    pub(super) agents: BTreeMap<String, Agent>,
    pub(super) path: Option<Path>,
    pub(super) session: Option<u64>,
    pub(super) received: Option<Time>,
    sent: Option<Time>,
    pub(super) xmpp: bool,
    /// Has packets for the other end.
    pub(super) traffic: bool,
    recent: VecDeque<Time>,
    sids: HashSet<String>,
    pub(super) starts: usize,
    pub(super) log: Vec<(Time, Output)>,
}

/// What works now. A path works while the number in it is that of its kind.
#[derive(Clone, Copy, Debug)]
pub(super) struct Weather {
    pub(super) direct: bool,
    pub(super) relay: bool,
    pub(super) generation: u16,
    /// Per cent.
    pub(super) loss: u64,
    pub(super) repeats: u64,
    /// Milliseconds.
    pub(super) delay: u64,
}

pub(super) struct World {
    pub(super) now: Time,
    pub(super) ends: [End; 2],
    pub(super) weather: Weather,
    events: BinaryHeap<Reverse<(Time, u64, usize)>>,
    bodies: BTreeMap<usize, Event>,
    next: usize,
    sessions: u64,
    rng: Rng,
}

impl End {
    fn new(config: LinkConfig, seed: u64) -> Self {
        Self {
            link: Link::new(config.clone(), seed),
            config,
            agents: BTreeMap::new(),
            path: None,
            session: None,
            received: None,
            sent: None,
            xmpp: false,
            traffic: false,
            recent: VecDeque::new(),
            sids: HashSet::new(),
            starts: 0,
            log: Vec::new(),
        }
    }

    /// When the link wants something, if only its turn: here it always gets it.
    fn next_due(&self) -> Option<Time> {
        self.link.poll_timeout().into_iter().chain(self.link.turn_at()).min()
    }

    pub(super) fn count(&self, from: Time, f: impl Fn(&Output) -> bool) -> usize {
        self.log.iter().filter(|(at, o)| *at >= from && f(o)).count()
    }
}

impl World {
    pub(super) fn new(seed: u64, proactive: [bool; 2]) -> Self {
        let mut rng = Rng::new(seed);
        let mut end = |i: usize| {
            let jids = ["a@x/1".to_owned(), "b@x/2".to_owned()];
            let config = LinkConfig {
                proactive: proactive[i],
                idle_timeout: ms(120_000),
                our_jid: jids[i].clone(),
                peer_jid: jids[1 - i].clone(),
            };
            End::new(config, rng.next())
        };
        let ends = [end(0), end(1)];
        let weather = Weather { direct: true, relay: true, generation: 1, loss: 0, repeats: 0, delay: 20 };
        let now = Time::ZERO + ms(1_000_000);
        let (events, bodies) = (BinaryHeap::new(), BTreeMap::new());
        let mut world = Self { now, ends, weather, events, bodies, next: 0, sessions: 0, rng };
        world.later(ms(0), Event::Tick);
        world
    }

    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.rng.next() % n.max(1)
    }

    fn later(&mut self, after: Duration, event: Event) {
        let order = self.rng.next();
        self.events.push(Reverse((self.now + after, order, self.next)));
        self.bodies.insert(self.next, event);
        self.next += 1;
    }

    fn works(&self, path: Path) -> bool {
        match path {
            Path::Direct(a) => self.weather.direct && a.port() == self.weather.generation,
            Path::Relay { channel, .. } => self.weather.relay && channel == self.weather.generation,
        }
    }

    fn joined(&self) -> bool {
        self.ends[0].session.is_some() && self.ends[0].session == self.ends[1].session
    }

    /// Both ends up over a path that works.
    pub(super) fn healthy(&self) -> bool {
        let up = self.ends.iter().all(|e| e.link.state() == State::Up && e.path.is_some_and(|p| self.works(p)));
        up && self.joined() && self.ends[0].path == self.ends[1].path
    }

    pub(super) fn run(&mut self, d: Duration) {
        self.run_until(d, |_| false);
    }

    /// Until `f` holds or the time is over; how long it took.
    pub(super) fn run_until(&mut self, d: Duration, f: impl Fn(&Self) -> bool) -> Option<Duration> {
        let (start, end) = (self.now, self.now + d);
        loop {
            if f(self) {
                return Some(self.now.since(start));
            }
            let timer = self.ends.iter().filter_map(|e| e.next_due()).min().unwrap_or(Time::MAX);
            let event = self.events.peek().map_or(Time::MAX, |e| e.0.0);
            let next = timer.min(event);
            if next > end {
                self.now = end;
                return None;
            }
            self.now = self.now.max(next);
            if event <= timer {
                let Some(Reverse((_, _, id))) = self.events.pop() else { continue };
                if let Some(body) = self.bodies.remove(&id) {
                    self.happen(body);
                }
            } else {
                for i in 0..2 {
                    self.ends[i].link.handle_timeout(self.now);
                    self.carry_out(i, 0);
                    if self.ends[i].link.turn_at().is_some_and(|t| t <= self.now) {
                        self.input(i, Input::Turn);
                    }
                }
            }
        }
    }

    pub(super) fn input(&mut self, i: usize, input: Input) {
        let initiated = usize::from(matches!(input, Input::Initiated { .. }));
        self.ends[i].link.handle(self.now, input);
        self.carry_out(i, initiated);
    }

    fn carry_out(&mut self, i: usize, initiated: usize) {
        let mut answers = 0;
        while let Some(output) = self.ends[i].link.poll_output() {
            let now = self.now;
            let end = &mut self.ends[i];
            end.log.push((now, output.clone()));
            end.recent.push_back(now);
            while end.recent.front().is_some_and(|t| now.since(*t) > ms(10_000)) {
                end.recent.pop_front();
            }
            assert!(end.recent.len() <= MOST_OUTPUTS, "a storm: {:?}", &end.log[end.log.len() - 40..]);
            answers += usize::from(matches!(output, Output::Answer { .. }));
            self.obey(i, output);
        }
        assert_eq!(answers, initiated, "every remote initiate gets exactly one answer");
        self.check(i);
    }

    fn check(&self, i: usize) {
        let end = &self.ends[i];
        assert!(end.agents.len() <= timing::ATTEMPTS, "{} agents", end.agents.len());
        let life = timing::NEGOTIATION + timing::HANDSHAKE + timing::LINGER;
        for (sid, a) in &end.agents {
            assert!(self.now.since(a.started) <= life, "agent {sid} is left over");
        }
        let timeout = end.link.poll_timeout();
        assert!(timeout.is_none_or(|t| t > self.now), "it would spin in {:?}", end.link);
        if end.link.state() != State::Idle {
            let soon = self.now + ms(80_000);
            assert!(
                end.next_due().is_some_and(|t| t <= soon),
                "nothing gets it out of {:?}: {:?}",
                end.link.state(),
                end.link
            );
        }
    }

    fn obey(&mut self, i: usize, output: Output) {
        match output {
            Output::Start { sid, role } => {
                let end = &mut self.ends[i];
                assert!(end.sids.insert(sid.clone()), "{sid} is started again");
                end.starts += 1;
                let ready = role == Role::Controlled;
                end.agents.insert(sid.clone(), Agent { role, started: self.now, ready });
                let signal = if ready { Signal::Accept(sid.clone()) } else { Signal::Initiate(sid.clone()) };
                self.signal(i, signal);
                self.pair(&sid);
            }
            Output::Answer { sid, verdict } => self.signal(i, Signal::Reply(sid, verdict)),
            Output::Stop { sid } => {
                assert!(self.ends[i].agents.remove(&sid).is_some(), "{sid} was not running");
            }
            Output::Terminate { sid, reason } => self.signal(i, Signal::Terminate(sid, reason)),
            Output::UsePath { path } => self.ends[i].path = Some(path),
            Output::Handshake => self.shake(i),
            Output::Unpath => {
                self.ends[i].path = None;
                self.ends[i].session = None;
            }
            Output::Probe => self.probe(i),
            Output::Changed => {}
        }
    }

    fn shake(&mut self, i: usize) {
        if let Some(path) = self.ends[i].path.filter(|p| self.works(*p)) {
            self.later(ms(30), Event::Shaken(i, path));
        }
    }

    fn probe(&mut self, i: usize) {
        let works = self.ends[i].path.is_some_and(|p| self.works(p)) && self.joined();
        let rtt = ms(15);
        let (after, input) = if works { (rtt, Input::ProbeAnswered { rtt }) } else { (ms(500), Input::ProbeFailed) };
        self.later(after, Event::Input(i, input));
    }

    fn signal(&mut self, i: usize, signal: Signal) {
        let w = self.weather;
        let lost = !self.ends[i].xmpp || self.below(100) < w.loss;
        if lost {
            if let Signal::Initiate(sid) | Signal::Accept(sid) = signal {
                let why = "no answer".to_owned();
                let failed = Input::SignalFailed { sid, why, tie_break: false, gone: false };
                self.later(ms(5_000), Event::Input(i, failed));
            }
            return;
        }
        let times = 1 + u64::from(self.below(100) < w.repeats);
        for n in 0..times {
            let delay = ms(1 + self.below(w.delay) + n * self.below(w.delay * 20));
            self.later(delay, Event::Arrives(1 - i, signal.clone()));
        }
    }

    /// If both agents of a session know each other, they will find a path.
    fn pair(&mut self, sid: &str) {
        if self.ends.iter().all(|e| e.agents.get(sid).is_some_and(|a| a.ready)) {
            let after = ms(30 + self.below(900));
            self.later(after, Event::Found(sid.to_owned()));
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Tick => self.tick(),
            Event::Input(i, input) => self.input(i, input),
            Event::Arrives(i, signal) if self.ends[i].xmpp => self.arrives(i, signal),
            Event::Arrives(i, Signal::Initiate(sid)) => {
                let why = "gone".to_owned();
                self.input(1 - i, Input::SignalFailed { sid, why, tie_break: false, gone: true });
            }
            Event::Arrives(..) => {}
            Event::Found(sid) => self.found(&sid),
            Event::Shaken(i, path) if self.works(path) => {
                self.sessions += 1;
                for (end, roams) in [(1 - i, true), (i, false)] {
                    self.ends[end].session = Some(self.sessions);
                    if roams {
                        self.ends[end].path = Some(path);
                    }
                    self.input(end, Input::Session { at: self.now });
                }
            }
            Event::Shaken(..) => {}
        }
    }

    fn arrives(&mut self, i: usize, signal: Signal) {
        match signal {
            Signal::Initiate(sid) => self.input(i, Input::Initiated { sid }),
            Signal::Accept(sid) => {
                if let Some(a) = self.ends[i].agents.get_mut(&sid).filter(|a| a.role == Role::Controlling) {
                    a.ready = true;
                    self.pair(&sid);
                }
                self.input(i, Input::Accepted { sid });
            }
            Signal::Terminate(sid, reason) => self.input(i, Input::Terminated { sid, reason }),
            Signal::Reply(_, Verdict::Accept) => {}
            Signal::Reply(sid, verdict) => {
                let (tie_break, why) = (verdict == Verdict::TieBreak, format!("{verdict:?}"));
                self.input(i, Input::SignalFailed { sid, why, tie_break, gone: false });
            }
        }
    }

    fn found(&mut self, sid: &str) {
        let g = self.weather.generation;
        let direct = Path::Direct(([192, 0, 2, 1], g).into());
        let relay = Path::Relay { server: ([192, 0, 2, 9], 3478).into(), channel: g };
        let path = if self.weather.direct { Some(direct) } else { self.weather.relay.then_some(relay) };
        for i in [0, 1] {
            // Of an agent that was stopped nothing is heard any more.
            if !self.ends[i].agents.contains_key(sid) {
                continue;
            }
            let input = match path {
                Some(path) => {
                    let relayed = path == relay;
                    Input::AgentFound { sid: sid.to_owned(), path, relayed }
                }
                None => Input::AgentFailed { sid: sid.to_owned(), why: "no pair worked".to_owned() },
            };
            let after = ms(self.below(40));
            self.later(after, Event::Input(i, input));
        }
    }

    /// Ten times a second: packets; once a second each tunnel is looked at.
    fn tick(&mut self) {
        for i in [0, 1] {
            let (path, session) = (self.ends[i].path, self.ends[i].session);
            if self.ends[i].traffic {
                match (path, session) {
                    (None, _) => self.input(i, Input::Wanted),
                    (Some(_), None) => {}
                    (Some(path), Some(_)) => {
                        self.ends[i].sent = Some(self.now);
                        if self.works(path) && self.joined() {
                            self.ends[1 - i].received = Some(self.now);
                            self.ends[1 - i].path = Some(path);
                        }
                    }
                }
            }
            let second = self.now.as_nanos() / 1_000_000 % 1000 == 500 * i as u64;
            let end = &self.ends[i];
            if second && (end.path.is_some() || end.session.is_some()) {
                let path = end.path.filter(|_| end.session.is_some() || end.link.path().is_some());
                let look = Input::Activity { last_received: end.received, last_sent: end.sent, path };
                self.input(i, look);
            }
        }
        self.later(ms(100), Event::Tick);
    }

    /// Logs in or loses the XMPP connection.
    pub(super) fn xmpp(&mut self, i: usize, up: bool) {
        if self.ends[i].xmpp == up {
            return;
        }
        self.ends[i].xmpp = up;
        if up {
            self.input(i, Input::SignalingUp);
            if self.ends[1 - i].xmpp {
                self.input(i, Input::PeerOnline);
                self.later(ms(5), Event::Input(1 - i, Input::PeerOnline));
                self.later(ms(9), Event::Input(1 - i, Input::PeerOnline));
            }
        } else {
            self.input(i, Input::SignalingDown);
            if self.ends[1 - i].xmpp {
                self.input(1 - i, Input::PeerOffline);
            }
        }
    }

    /// Killed and started again; `noticed`: the server told the other end that it was gone.
    pub(super) fn restart(&mut self, i: usize, noticed: bool) {
        let seed = self.rng.next();
        let old = &self.ends[i];
        let (config, traffic, xmpp) = (old.config.clone(), old.traffic, old.xmpp);
        self.ends[i] = End::new(config, seed);
        self.ends[i].traffic = traffic;
        // What was on its way to the old process does not reach the new one.
        self.bodies.retain(|_, e| !matches!(e, Event::Input(to, _) if *to == i));
        if xmpp {
            if noticed && self.ends[1 - i].xmpp {
                self.input(1 - i, Input::PeerOffline);
            }
            self.xmpp(i, true);
        }
    }

    /// All paths so far are dead; new ones can be found.
    pub(super) fn break_paths(&mut self) {
        self.weather.generation += 1;
    }
}
