//! What is broken when: a timetable that follows from a seed. Pure.
//!
//! Faults of workers and faults of the broker are two rows that run beside each other; within a row one
//! thing is whole again before the next breaks. So a quorum is lost on purpose at most, and comes back.

use clap::ValueEnum;
use fastrand::Rng;

/// The shortest and the longest that something stays broken, in milliseconds.
const SHORTEST_MS: u64 = 300;
const LONGEST_MS: u64 = 39_000;
/// The longest of what is not done to all servers in turn.
const LONGEST_OF_ONE_MS: u64 = 10_000;

/// How long each server is away in an upgrade under load: at least so long that those that lead lanes
/// compact their logs meanwhile, which nats-server does every ten seconds at most.
const AWAY_MS: std::ops::Range<u64> = 11_000..13_000;

/// From the beginning to the first fault, and between faults of a row.
const WARM_UP_MS: u64 = 1500;
const PAUSE_MS: std::ops::Range<u64> = 1000..4000;

/// A way to break things.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum)]
pub(super) enum Fault {
    /// A worker is killed and started again
    WorkerKilled,
    /// A worker is stopped where it is, for longer than ack_wait as a rule, and goes on
    WorkerFrozen,
    /// The one broker is killed and started again
    BrokerKilled,
    /// The one broker is stopped where it is and goes on
    BrokerFrozen,
    /// Any server of three is killed and started again
    NodeKilled,
    /// Any server of three is stopped where it is and goes on
    NodeFrozen,
    /// The server that leads the jobs stream is killed and started again
    StreamLeaderKilled,
    /// The server that leads the jobs stream is stopped where it is and goes on
    StreamLeaderFrozen,
    /// The server that leads a lane's consumer is killed and started again
    ConsumerLeaderKilled,
    /// The server that leads the cluster is killed and started again
    MetaLeaderKilled,
    /// Two servers of three are killed and started again
    QuorumLost,
    /// All servers are restarted, one after the other
    RollingRestart,
    /// Each server in turn is told to end and stays away for some 12 s, until the others have dropped what it
    /// missed from their logs; then the servers that are back take the lead
    RollingUpgradeUnderLoad,
    /// A server loses all that it has stored and gets it from the others
    NodeWiped,
    /// All servers run in jerks, stopped most of the time, as on machines that are short of processors
    ServersStutter,
    /// A server is told to leave in its own time, and started again
    LameDuck,
    /// The connections to all servers are closed
    ConnectionsReset,
}

/// What a fault can be done to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Needs {
    Workers,
    OneServer,
    Cluster,
    /// Streams with copies.
    Replicas,
    AnyServer,
}

impl Fault {
    /// The name in history and report.
    pub(super) fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    fn needs(self) -> Needs {
        match self {
            Self::WorkerKilled | Self::WorkerFrozen => Needs::Workers,
            Self::BrokerKilled | Self::BrokerFrozen => Needs::OneServer,
            Self::NodeKilled
            | Self::NodeFrozen
            | Self::StreamLeaderKilled
            | Self::StreamLeaderFrozen
            | Self::ConsumerLeaderKilled
            | Self::MetaLeaderKilled
            | Self::QuorumLost
            | Self::RollingRestart
            | Self::RollingUpgradeUnderLoad => Needs::Cluster,
            Self::NodeWiped => Needs::Replicas,
            Self::LameDuck | Self::ConnectionsReset | Self::ServersStutter => Needs::AnyServer,
        }
    }

    fn is_of_workers(self) -> bool {
        self.needs() == Needs::Workers
    }

    /// Whether it can be done to what is there.
    pub(super) fn fits(self, wish: &Wish) -> bool {
        match self.needs() {
            Needs::Workers => wish.workers > 0,
            Needs::OneServer => wish.nodes == 1,
            Needs::Cluster => wish.nodes > 1,
            Needs::Replicas => wish.nodes > 1 && wish.replicas > 1,
            Needs::AnyServer => true,
        }
    }

    /// How long it is to last, all servers together.
    fn lasts_ms(self, chance: &mut Rng, wish: &Wish) -> u64 {
        let ack_wait_ms = wish.ack_wait_ms;
        let lasts = match self {
            // As a rule past the lease, now and then within it.
            Self::WorkerFrozen => chance.u64(ack_wait_ms / 2..ack_wait_ms * 2),
            Self::RollingUpgradeUnderLoad => wish.nodes as u64 * chance.u64(AWAY_MS),
            Self::WorkerKilled => chance.u64(SHORTEST_MS..3000),
            Self::BrokerKilled | Self::BrokerFrozen | Self::QuorumLost => chance.u64(500..8000),
            Self::NodeKilled
            | Self::NodeFrozen
            | Self::StreamLeaderKilled
            | Self::StreamLeaderFrozen
            | Self::ConsumerLeaderKilled
            | Self::MetaLeaderKilled
            | Self::NodeWiped => chance.u64(500..6000),
            Self::ServersStutter => chance.u64(3000..8000),
            Self::ConnectionsReset => chance.u64(SHORTEST_MS..1500),
            // These take as long as they take.
            Self::RollingRestart | Self::LameDuck => SHORTEST_MS,
        };
        lasts.clamp(SHORTEST_MS, self.longest_ms())
    }

    fn longest_ms(self) -> u64 {
        match self.wants_all_its_time() {
            true => LONGEST_MS,
            false => LONGEST_OF_ONE_MS,
        }
    }

    /// Whether it shows nothing where it is cut short.
    fn wants_all_its_time(self) -> bool {
        self == Self::RollingUpgradeUnderLoad
    }
}

/// What is there to be broken, and for how long.
#[derive(Clone, Debug)]
pub(super) struct Wish {
    pub(super) seed: u64,
    pub(super) duration_ms: u64,
    pub(super) nodes: usize,
    pub(super) replicas: u8,
    pub(super) workers: usize,
    pub(super) ack_wait_ms: u64,
    /// Only these; all that fit where there is none.
    pub(super) only: Vec<Fault>,
}

/// One thing that breaks and is whole again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) at_ms: u64,
    pub(super) for_ms: u64,
    pub(super) fault: Fault,
    /// What picks the one that is broken, of those there are.
    pub(super) chance: usize,
}

/// Two rows of steps, which run beside each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) workers: Vec<Step>,
    pub(super) broker: Vec<Step>,
}

pub(super) fn plan(wish: &Wish) -> Plan {
    let all = Fault::value_variants().iter().copied();
    let wanted: Vec<Fault> = all
        .filter(|fault| fault.fits(wish))
        .filter(|fault| wish.only.is_empty() || wish.only.contains(fault))
        .collect();
    let (workers, broker) = wanted.into_iter().partition(|fault| fault.is_of_workers());
    let mut chance = Rng::with_seed(wish.seed);
    Plan {
        workers: row(wish, workers, &mut chance.fork()),
        broker: row(wish, broker, &mut chance.fork()),
    }
}

/// Steps one after the other; each fault once before any comes again.
fn row(wish: &Wish, faults: Vec<Fault>, chance: &mut Rng) -> Vec<Step> {
    let (mut steps, mut deck) = (Vec::new(), Vec::new());
    let mut at_ms = WARM_UP_MS.min(wish.duration_ms / 4);
    loop {
        if deck.is_empty() {
            deck.clone_from(&faults);
            chance.shuffle(&mut deck);
        }
        let Some(fault) = deck.pop() else { return steps };
        let left_ms = wish.duration_ms.saturating_sub(at_ms);
        if left_ms < 2 * SHORTEST_MS {
            return steps;
        }
        let lasts_ms = fault.lasts_ms(chance, wish);
        let for_ms = match fault.wants_all_its_time() {
            true if lasts_ms > left_ms && faults.len() > 1 => continue,
            true => lasts_ms.min(left_ms),
            false => lasts_ms.min(left_ms / 2),
        };
        steps.push(Step { at_ms, for_ms, fault, chance: chance.usize(0..1000) });
        at_ms += for_ms + chance.u64(PAUSE_MS);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn wish(seed: u64, seconds: u64, nodes: usize) -> Wish {
        Wish {
            seed,
            duration_ms: seconds * 1000,
            nodes,
            replicas: if nodes == 1 { 1 } else { 3 },
            workers: 3,
            ack_wait_ms: 5000,
            only: Vec::new(),
        }
    }

    #[test]
    fn a_long_run_meets_every_fault_that_fits() {
        for nodes in [1, 3] {
            let wish = wish(1, 600, nodes);
            let Plan { workers, broker } = plan(&wish);
            for fault in Fault::value_variants() {
                let is_met = workers.iter().chain(&broker).any(|step| step.fault == *fault);
                assert_eq!(is_met, fault.fits(&wish), "{fault:?} of {nodes}");
            }
        }
        let without_copies = Wish { replicas: 1, ..wish(1, 600, 3) };
        let broker = plan(&without_copies).broker;
        assert!(broker.iter().all(|step| step.fault != Fault::NodeWiped), "that would lose jobs");
    }

    #[test]
    fn an_upgrade_has_all_its_time_or_is_left_out() {
        let upgrade = Fault::RollingUpgradeUnderLoad;
        let planned = |seconds, only: &[Fault]| {
            let broker = plan(&Wish { only: only.to_vec(), ..wish(3, seconds, 3) }).broker;
            let upgrades = broker.into_iter().filter(|step| step.fault == upgrade);
            upgrades.map(|step| step.for_ms).collect::<Vec<_>>()
        };
        assert!(planned(600, &[]).iter().all(|for_ms| *for_ms >= 3 * AWAY_MS.start));
        assert!(planned(30, &[upgrade, Fault::NodeKilled]).is_empty());
        assert!(planned(30, &[upgrade])[0] > 25_000, "there is nothing else to be done");
    }

    #[test]
    fn only_what_is_asked_for() {
        let only = Wish { only: vec![Fault::WorkerKilled], ..wish(1, 4, 1) };
        let Plan { workers, broker } = plan(&only);
        assert!(!workers.is_empty() && broker.is_empty());
        assert!(workers.iter().all(|step| step.fault == Fault::WorkerKilled));
    }

    #[test]
    fn names_of_faults_tell_workers_from_brokers() {
        for fault in Fault::value_variants() {
            assert_eq!(fault.name().starts_with("worker"), fault.is_of_workers(), "{fault:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_breaks_is_whole_again_before_the_next_and_in_time(
            seed in any::<u64>(), seconds in 1u64..1200, cluster in any::<bool>(),
        ) {
            let wish = wish(seed, seconds, if cluster { 3 } else { 1 });
            let made = plan(&wish);
            prop_assert_eq!(&made, &plan(&wish));
            for row in [&made.workers, &made.broker] {
                prop_assert!(!row.is_empty());
                for step in row {
                    prop_assert!(step.fault.fits(&wish));
                    prop_assert!((SHORTEST_MS..=LONGEST_MS).contains(&step.for_ms));
                    prop_assert!(step.at_ms + step.for_ms <= wish.duration_ms);
                }
                for pair in row.windows(2) {
                    prop_assert!(pair[0].at_ms + pair[0].for_ms < pair[1].at_ms);
                }
            }
        }
    }
}
