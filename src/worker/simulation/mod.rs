//! The settlement of jobs, driven through random harm: workers that die or freeze between any two steps,
//! acks that are lost, delays and deliveries that a broker forgets, jobs that are sent again.
//!
//! The broker is a model of what JetStream does ([`broker`]). The workers are the library's own
//! decisions, one step at a time ([`world`]): whether a delivery is undisturbed, what its history
//! admits, what an outcome settles to, what goes on record and in which order, when a lease is lost.

mod broker;
mod world;

use proptest::prelude::*;
use proptest::test_runner::Config;
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest, prop_state_machine};

use self::world::World;

/// What happens next. Workers and runs are named by numbers, each taken modulo how many there are.
#[derive(Clone, Copy, Debug)]
pub(super) enum Event {
    /// A worker that holds nothing takes what the broker has for it; one that holds a job does the
    /// next thing with it, its handler saying this when it is asked.
    Step(usize, Said),
    /// Time passes, in seconds. Who lives renews leases meanwhile.
    Wait(u8),
    /// A worker is killed, and another takes its place.
    Crash(usize),
    /// All servers and all workers are killed at once, and started again: a consumer in memory knows of
    /// nothing that it handed out.
    Outage,
    /// What a worker tells the broker last gets lost.
    LoseWord(usize),
    /// The broker hands out early what was put off, as when a NAK's delay was forgotten.
    Early(usize),
    /// A producer that did not hear an answer sends a run again, under its guard.
    Resend(usize),
    /// Somebody cancels a run: that is on record, and nothing has been deleted yet.
    Cancel(usize),
    /// The dead letters are full, or have room again.
    FillDead,
    EmptyDead,
    /// A worker stands still while time goes on, and goes on where it was.
    Freeze(usize),
    Thaw(usize),
    /// The broker is killed, and has forgotten all deliveries since it last wrote them down.
    Amnesia,
    /// The lane's consumer is made anew.
    Anew,
}

/// What a handler says.
#[derive(Clone, Copy, Debug)]
pub(super) enum Said {
    Done,
    Failed,
    Snooze,
    Discard,
    Cancelled,
    /// It was told to stop, since its worker drains.
    Drained,
}

/// How much harm is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Harm {
    /// Workers die, words get lost, delays are forgotten: attempts stay exact.
    Mild,
    /// Besides, workers freeze and the broker forgets deliveries: each run ends once all the same.
    Wild,
}

fn said() -> impl Strategy<Value = Said> {
    prop_oneof![
        3 => Just(Said::Done),
        5 => Just(Said::Failed),
        2 => Just(Said::Snooze),
        1 => Just(Said::Discard),
        1 => Just(Said::Cancelled),
        2 => Just(Said::Drained),
    ]
}

fn events(harm: Harm) -> BoxedStrategy<Event> {
    let any = 0..usize::from(u8::MAX);
    let mild = prop_oneof![
        40 => (any.clone(), said()).prop_map(|(worker, said)| Event::Step(worker, said)),
        8 => (0u8..90).prop_map(Event::Wait),
        4 => any.clone().prop_map(Event::Crash),
        1 => Just(Event::Outage),
        2 => any.clone().prop_map(Event::LoseWord),
        2 => any.clone().prop_map(Event::Early),
        2 => any.clone().prop_map(Event::Resend),
        1 => any.clone().prop_map(Event::Cancel),
        1 => Just(Event::FillDead),
        1 => Just(Event::EmptyDead),
    ];
    let wild = prop_oneof![
        3 => any.clone().prop_map(Event::Freeze),
        3 => any.prop_map(Event::Thaw),
        2 => Just(Event::Amnesia),
        1 => Just(Event::Anew),
    ];
    match harm {
        Harm::Mild => mild.boxed(),
        Harm::Wild => prop_oneof![8 => mild, 1 => wild].boxed(),
    }
}

/// What the events so far entitle to: how often a run may have been begun without a trace.
#[derive(Clone, Debug, Default)]
pub(super) struct Entitled {
    /// How often the broker forgot who has what, or who had.
    pub(super) forgotten: u32,
    /// How often a worker stood still.
    pub(super) frozen: u32,
}

impl Entitled {
    fn after(mut self, event: Event) -> Self {
        match event {
            Event::Amnesia | Event::Anew => self.forgotten += 1,
            Event::Freeze(_) => self.frozen += 1,
            Event::Step(..)
            | Event::Wait(_)
            | Event::Crash(_)
            | Event::Outage
            | Event::LoseWord(_)
            | Event::Early(_)
            | Event::Resend(_)
            | Event::Cancel(_)
            | Event::FillDead
            | Event::EmptyDead
            | Event::Thaw(_) => {}
        }
        self
    }
}

macro_rules! simulation {
    ($name:ident, $harm:expr) => {
        struct $name;

        impl ReferenceStateMachine for $name {
            type State = Entitled;
            type Transition = Event;

            fn init_state() -> BoxedStrategy<Entitled> {
                Just(Entitled::default()).boxed()
            }

            fn transitions(_: &Entitled) -> BoxedStrategy<Event> {
                events($harm)
            }

            fn apply(state: Entitled, event: &Event) -> Entitled {
                state.after(*event)
            }
        }

        impl StateMachineTest for $name {
            type SystemUnderTest = World;
            type Reference = Self;

            fn init_test(_: &Entitled) -> World {
                World::new($harm)
            }

            fn apply(mut world: World, _: &Entitled, event: Event) -> World {
                world.apply(event);
                world
            }

            fn check_invariants(world: &World, entitled: &Entitled) {
                world.check(entitled);
            }

            fn teardown(world: World, _: Entitled) {
                world.come_to_an_end();
            }
        }
    };
}

simulation!(Mild, Harm::Mild);
simulation!(Wild, Harm::Wild);

prop_state_machine! {
    #![proptest_config(Config { cases: 400, failure_persistence: None, ..Config::default() })]

    #[test]
    fn each_run_ends_once_and_its_attempts_are_exact(sequential 1..150 => Mild);

    #[test]
    fn each_run_ends_once_whatever_happens(sequential 1..150 => Wild);
}
