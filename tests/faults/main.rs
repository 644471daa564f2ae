//! Every fault that tidemill promises to live through, tried on real brokers and real processes.
//!
//! The numbers are those that the tests' first lines begin with. What is tested elsewhere is not
//! repeated here. What is shown here of one server with its defaults is shown in `everywhere` of all
//! other configurations.
//!
//! | fault | tested in |
//! |---|---|
//! | 1 worker SIGKILLed | `workers`; attempt numbers: suite `attempts` |
//! | 2 worker SIGSTOPped past its leases | `workers`; suite `attempts` |
//! | 3 worker SIGTERMed | `workers`; suite `drain`, cli `stop` |
//! | 4 handler panics, aborts, times out, blocks | `workers`; suite `outcomes`, `attempts`, `share` |
//! | 5 broker SIGKILLed | `broker`; suite `attempts`, `many`, `import` |
//! | 6 finished job published again after a restart | `broker`; suite `unique`, `dead` |
//! | 7 slow disk | `broker` |
//! | 8 power lost | `power`, `power_three` |
//! | 9 leader killed or frozen, all servers killed | `cluster`, `forgetting`; timers: suite `cluster` |
//! | 10 quorum lost | `cluster` |
//! | 11 rolling restart, lame duck, wiped server | `cluster`, `returning`, of one server `broker` |
//! | 12 worker cut off | `network` |
//! | 13 producer's line dead, half-open, cut, trickling, refused | `network`; suite `enqueue`, `all` |
//! | 14 slow line with resets, silence | `network`; suite `far` |
//! | 15 queue full | `limits`; suite `enqueue`, `many`, `later` |
//! | 16 account full | `limits` |
//! | 17 disk full | `limits`, of one server of three `nodes` |
//! | 18 completions and ledger missing, full, forbidden | `limits`; suite `refusals` |
//! | 19 dead letters missing, full | `limits`; suite `dead` |
//! | 20 large jobs, slow consumer | `workers` |
//! | 21 worker's clock wrong | `clock`; the broker's: suite `far` |
//! | 22 poison | `input`; suite `bad_input` |
//! | 23 oversized | `input`; suite `enqueue` |
//! | 24 hostile headers | `input`, `poison`; suite `bad_input` |
//! | 25 the same key at once, while running, afterwards | suite `unique` |
//! | 26 producer killed between publish and confirmation | `workers`, `network`; suite `all`, `moves` |
//! | 27 consumer deleted | `topology` |
//! | 28 stream deleted | `topology`; suite `enqueue` |
//! | 29 consumer changed, paused, of an earlier version | `topology`, `forgetting`; suite `queues` |
//! | 30 rights revoked | `topology`; suite `refusals`, connect `rights` |
//! | 31 credentials expire | connect `logins` |
//! | 32 TLS | connect `tls` |
//! | 33 unsettled jobs at their limit | `limits` |
//! | 34 more pulls than a lane lets wait | `topology` |
//! | lanes that are all full | `workers` |
//! | 35 retry storm | `workers`; speed: cli `bench` |
//! | 36 timers and cron | suite `later`, `cron`, `cluster`, `moves` |
//! | 37 other versions | suite `refusals`, `cron`, `bad_input` |
//! | 38 upgrade under a backlog | `broker`, of one server after the other `nodes` |
//! | 39 anything, for long | `tidemill chaos` |

#[path = "../suite/between.rs"]
mod between;
mod broker;
mod clock;
mod cluster;
mod everywhere;
mod forgetting;
mod input;
mod limits;
mod network;
mod nodes;
mod poison;
#[cfg(target_os = "linux")]
mod power;
#[cfg(target_os = "linux")]
mod power_three;
#[path = "../suite/proxy.rs"]
#[expect(dead_code, reason = "the suite has uses for all of it")]
mod proxy;
mod returning;
mod support;
mod topology;
mod workers;
