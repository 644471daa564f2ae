//! The lanes of a worker: buffers between fetching and running, and the choice among them. No I/O.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::job::Work;
use super::pick::Wheel;
use super::prefetch::{Load, Rate, capacity, refill};
use crate::priority::{Priority, Weights};

/// One lane of one of the worker's queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct LaneId {
    /// The queue's position in the worker's list.
    pub(crate) queue: usize,
    pub(crate) priority: Priority,
}

/// In which order the lanes of a queue are served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// Weighted-first, with the published starvation bound.
    #[default]
    Weighted,
    /// A lower priority only when no higher one has a job. Low jobs may starve.
    Strict,
}

/// All lanes of a worker.
pub(crate) struct Lanes {
    order: Order,
    queues: Vec<QueueLanes>,
    wheel: Wheel,
    slots: usize,
    /// Slots that have somebody to run jobs in them.
    manned: usize,
    busy: usize,
    /// Whether somebody was called to look for a job and has not looked yet, or is about to look without
    /// being called.
    is_called: bool,
    /// Whether no job is to be started any more.
    is_closed: bool,
    freed: Rate,
}

struct QueueLanes {
    wheel: Wheel,
    lanes: [Lane; 4],
    gate: Gate,
}

/// Whether jobs of a queue may be fetched and started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gate {
    Open,
    /// They could not be settled.
    Shut,
}

struct Lane {
    buffer: VecDeque<Work>,
    /// Jobs that were asked for, or are looked up before they may enter.
    expected: usize,
    starts: Rate,
    /// Whether its fetcher waits to be told of room.
    is_waiting: bool,
}

/// What a pick brings: a job perhaps, lanes whose fetchers have something to do, and who is to look
/// for a job next.
pub(crate) struct Picked {
    pub(crate) work: Option<Work>,
    pub(crate) refill: Vec<LaneId>,
    pub(crate) call: Call,
}

/// Who is to look for a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    /// Nobody: there is no job, or no slot; whoever ends a job looks again.
    Nobody,
    /// One of those that wait for jobs.
    Waiting,
    /// Somebody new, in a slot that nobody has worked in yet.
    New,
}

impl Lanes {
    pub(crate) fn new(
        queue_weights: &[u32],
        weights: &Weights,
        order: Order,
        slots: usize,
        now: Instant,
    ) -> Self {
        let lane = || Lane {
            buffer: VecDeque::new(),
            expected: 0,
            starts: Rate::new(now),
            is_waiting: false,
        };
        let queue = |_: &u32| QueueLanes {
            wheel: Wheel::new(weights.as_array()),
            lanes: std::array::from_fn(|_| lane()),
            gate: Gate::Open,
        };
        Self {
            order,
            queues: queue_weights.iter().map(queue).collect(),
            wheel: Wheel::new(queue_weights),
            slots,
            manned: 0,
            busy: 0,
            is_called: false,
            is_closed: false,
            freed: Rate::new(now),
        }
    }

    fn lane(&mut self, id: LaneId) -> &mut Lane {
        &mut self.queues[id.queue].lanes[id.priority.index()]
    }

    fn ids(&self) -> impl Iterator<Item = LaneId> + use<> {
        (0..self.queues.len())
            .flat_map(|queue| Priority::ALL.map(|priority| LaneId { queue, priority }))
    }

    /// Puts a job that was expected into its lane; who is to look for it.
    pub(crate) fn enter(&mut self, id: LaneId, work: Work) -> Call {
        let lane = self.lane(id);
        lane.expected = lane.expected.saturating_sub(1);
        lane.buffer.push_back(work);
        self.call()
    }

    /// One is called at a time, who calls the next: jobs that are over at once are then worked by few,
    /// without waking all.
    fn call(&mut self) -> Call {
        let has_job = !self.is_closed && self.queues.iter().any(QueueLanes::has_job);
        let call = if self.is_called || !has_job {
            Call::Nobody
        } else if self.busy < self.manned {
            Call::Waiting
        } else if self.manned < self.slots {
            self.manned += 1;
            Call::New
        } else {
            Call::Nobody
        };
        self.is_called |= call != Call::Nobody;
        call
    }

    /// `count` jobs that were expected do not come; whether the lane's fetcher waits to hear of it.
    #[must_use]
    pub(crate) fn give_up(&mut self, id: LaneId, count: usize) -> bool {
        let lane = self.lane(id);
        lane.expected = lane.expected.saturating_sub(count);
        std::mem::take(&mut lane.is_waiting)
    }

    /// A job has left its slot.
    pub(crate) fn free_slot(&mut self, now: Instant) {
        self.busy -= 1;
        self.freed.count(now);
    }

    /// How many jobs a lane may ask for now; they count as expected from here on. With 0 its fetcher
    /// is told when there is room.
    pub(crate) fn ask(&mut self, id: LaneId, now: Instant) -> usize {
        let room = self.room(id, now);
        let lane = self.lane(id);
        lane.expected += room;
        lane.is_waiting = room == 0;
        room
    }

    fn room(&mut self, id: LaneId, now: Instant) -> usize {
        if self.queues[id.queue].gate == Gate::Shut {
            return 0;
        }
        if self.order == Order::Strict && self.is_outranked(id) {
            return 0;
        }
        let slots_per_second = self.freed.per_second(now);
        let free_slots = self.slots - self.busy;
        let lane = self.lane(id);
        let starts_per_second = lane.starts.per_second(now);
        let capacity = capacity(Load { free_slots, slots_per_second, starts_per_second });
        refill(capacity, lane.buffer.len() + lane.expected)
    }

    /// Whether a higher lane of the queue has jobs.
    fn is_outranked(&self, id: LaneId) -> bool {
        let higher = &self.queues[id.queue].lanes[..id.priority.index()];
        higher.iter().any(|lane| !lane.buffer.is_empty())
    }

    /// Takes the next job into a slot, which must be free and manned, and names the lanes to be refilled.
    pub(crate) fn pick(&mut self, now: Instant) -> Picked {
        self.is_called = false;
        let chosen = self.choose();
        let work = chosen.and_then(|id| {
            let lane = self.lane(id);
            lane.starts.count(now);
            lane.buffer.pop_front()
        });
        self.busy += usize::from(work.is_some());
        Picked { work, refill: self.refillable(now), call: self.call() }
    }

    fn choose(&mut self) -> Option<LaneId> {
        if self.is_closed {
            return None;
        }
        let Self { queues, wheel, .. } = self;
        let queue = wheel.pick(|queue| queues[queue].has_job())?;
        let QueueLanes { wheel, lanes, .. } = &mut self.queues[queue];
        let has_job = |lane: usize| !lanes[lane].buffer.is_empty();
        let lane = match self.order {
            Order::Weighted => wheel.pick(has_job)?,
            Order::Strict => (0..lanes.len()).find(|lane| has_job(*lane))?,
        };
        Some(LaneId { queue, priority: Priority::ALL[lane] })
    }

    fn refillable(&mut self, now: Instant) -> Vec<LaneId> {
        let mut found = Vec::new();
        for id in self.ids() {
            if self.lane(id).is_waiting && self.room(id, now) > 0 {
                self.lane(id).is_waiting = false;
                found.push(id);
            }
        }
        found
    }

    /// No more jobs are started, for good.
    pub(crate) fn close(&mut self) {
        self.is_closed = true;
    }

    /// No more jobs of a queue are fetched or started. What lies in its buffers is handed back when it
    /// has lain there too long.
    pub(crate) fn shut(&mut self, queue: usize) {
        self.queues[queue].gate = Gate::Shut;
    }

    /// Jobs of a queue are fetched and started again: the lanes to be refilled, and who is to look for
    /// a job.
    pub(crate) fn open(&mut self, queue: usize, now: Instant) -> (Vec<LaneId>, Call) {
        self.queues[queue].gate = Gate::Open;
        (self.refillable(now), self.call())
    }

    /// Takes out what came in before `oldest` and has not been started; who is to look for the rest, where
    /// whoever was about to look is kept from it.
    pub(crate) fn sweep(&mut self, oldest: Instant) -> (Vec<Work>, Call) {
        let mut stale = Vec::new();
        for id in self.ids() {
            let buffer = &mut self.lane(id).buffer;
            while buffer.front().is_some_and(|work| work.received() < oldest) {
                stale.extend(buffer.pop_front());
            }
        }
        self.is_called = false;
        (stale, self.call())
    }

    /// Takes out everything.
    pub(crate) fn take_all(&mut self) -> Vec<Work> {
        self.ids().flat_map(|id| std::mem::take(&mut self.lane(id).buffer)).collect()
    }
}

impl QueueLanes {
    fn has_job(&self) -> bool {
        self.gate == Gate::Open && self.lanes.iter().any(|lane| !lane.buffer.is_empty())
    }
}

/// How long a job may lie in a buffer before it is handed back for another worker to run.
pub(crate) const MAX_BUFFERED_FOR: Duration = Duration::from_secs(2);
