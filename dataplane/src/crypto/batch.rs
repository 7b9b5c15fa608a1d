//! From jobs to groups of lanes, and to the libraries where those are better.

use super::lanes::{Batch, Lanes, PACKETS_MAX, Packet};
use super::{Expanded, Job, LanesKey, TAG_LEN, nonce};
use arrayvec::ArrayVec;
use std::cmp::Reverse;

/// Jobs that are looked at together. Callers have as many.
const JOBS: usize = PACKETS_MAX;

/// What is to be done with a batch.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Task {
    Seal,
    Open,
}

/// Does all jobs.
pub(super) fn run(task: Task, jobs: &mut [Job<'_>]) {
    for jobs in jobs.chunks_mut(JOBS) {
        let mut wide: ArrayVec<(&LanesKey, &mut Job<'_>), JOBS> = ArrayVec::new();
        for job in jobs {
            let key = job.key;
            match &key.0 {
                Expanded::Lanes(k) if job.buf.len() >= TAG_LEN => wide.push((k, job)),
                _ => one(task, job),
            }
        }
        // Lanes of a group that is alike run dry together.
        let order = |(key, job): &(&LanesKey, &mut Job<'_>)| Reverse((key.lanes.width(), job.buf.len()));
        if !wide.is_sorted_by_key(order) {
            wide.sort_unstable_by_key(order);
        }
        let mut rest = &mut wide[..];
        while let Some((key, _)) = rest.first() {
            let lanes = key.lanes;
            let n = rest.iter().take_while(|(k, _)| k.lanes.width() == lanes.width()).count();
            let (same, others) = rest.split_at_mut(n);
            by_lanes(task, lanes, same);
            rest = others;
        }
    }
}

/// Blocks of key stream that a job takes.
fn blocks(job: &Job<'_>) -> usize {
    1 + (job.buf.len() - TAG_LEN).div_ceil(64)
}

/// By the library.
fn one(task: Task, job: &mut Job<'_>) {
    let (key, nonce) = (job.key, nonce(job.counter));
    match task {
        Task::Seal => {
            let end = job.buf.len() - TAG_LEN;
            if let Some((head, body)) = job.from.take() {
                job.buf[head..head + body.len()].copy_from_slice(body);
            }
            let (text, tag) = job.buf.split_at_mut(end);
            tag.copy_from_slice(&key.seal(nonce, &[], text));
            job.ok = true;
        }
        Task::Open => {
            job.ok = job.buf.len() >= TAG_LEN && key.open(nonce, &[], job.buf);
            if !job.ok {
                job.buf.fill(0);
            }
        }
    }
}

/// Jobs of one back end, longest first: by lanes, in groups of packets that are at most twice as long as each
/// other. What makes no group goes to the library.
fn by_lanes(task: Task, lanes: Lanes, mut jobs: &mut [(&LanesKey, &mut Job<'_>)]) {
    let mut batch = Batch { packets: ArrayVec::new(), groups: ArrayVec::new() };
    while let Some((_, longest)) = jobs.first() {
        let half = blocks(longest) / 2;
        let alike = jobs.iter().take(lanes.width()).take_while(|(_, j)| blocks(j) > half).count();
        let n = lanes.group_of(alike, longest.buf.len() - TAG_LEN);
        let (group, others) = jobs.split_at_mut(if n == 0 { alike } else { n });
        jobs = others;
        if n == 0 {
            group.iter_mut().for_each(|(_, job)| one(task, job));
            continue;
        }
        batch.groups.push(n as u8);
        for (key, job) in group {
            let (text, tag) = job.buf.split_last_chunk_mut::<TAG_LEN>().expect("a job here has room for a tag");
            let (start, from) = job.from.take().map_or((0, &[][..]), |(head, body)| whole_blocks(head, body, text));
            let nonce = words(nonce(job.counter));
            batch.packets.push(Packet { key: &key.words, nonce, aad: &[], text, from, start, tag, ok: &mut job.ok });
        }
    }
    if batch.groups.is_empty() {
        return;
    }
    match task {
        Task::Seal => lanes.seal(&mut batch),
        Task::Open => lanes.open(&mut batch),
    }
    for p in &mut batch.packets {
        if !*p.ok {
            p.text.fill(0);
            p.tag.fill(0);
        }
    }
}

/// Copies of `body`, which belongs at `head` of `text`, what is not a whole block of the text, and gives where the rest
/// belongs, and the rest.
fn whole_blocks<'a>(head: usize, body: &'a [u8], text: &mut [u8]) -> (usize, &'a [u8]) {
    let end = head + body.len();
    let (first, last) = (head.next_multiple_of(64), end / 64 * 64);
    if first >= last {
        text[head..end].copy_from_slice(body);
        return (0, &[]);
    }
    text[head..first].copy_from_slice(&body[..first - head]);
    text[last..end].copy_from_slice(&body[last - head..]);
    (first, &body[first - head..last - head])
}

/// A nonce as the state has it.
pub(super) fn words(nonce: [u8; 12]) -> [u32; 3] {
    [0, 4, 8].map(|i: usize| u32::from_le_bytes([nonce[i], nonce[i + 1], nonce[i + 2], nonce[i + 3]]))
}
