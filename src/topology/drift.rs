//! How what is found differs from what is wanted.

use std::fmt;

use serde_json::{Map, Value};

/// By which option a consumer is kept in memory; fixed at its birth.
pub(crate) const MEM_STORAGE: &str = "mem_storage";

/// An option of a stream or consumer that is not as this configuration would have it.
///
/// Drift is reported and left alone: somebody may have meant it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Drift {
    /// The stream, or the stream and the consumer with a `/` between.
    pub place: String,
    /// The option's name in the broker's configuration.
    pub option: String,
    /// What this configuration would set, as JSON.
    pub wanted: String,
    /// What is set, as JSON.
    pub found: String,
}

impl Drift {
    /// Whether the option is one that [`QueueConfig`](super::QueueConfig) leaves to its user, such
    /// as a limit. tidemill relies on the others.
    pub fn is_choice(&self) -> bool {
        match (self.is_of_consumer(), self.option.as_str()) {
            (true, option) => option == "ack_wait",
            // How a consumer is kept follows from how its stream is.
            (false, "num_replicas" | "storage") => true,
            (false, "max_age" | "max_msgs" | "max_bytes" | "max_msg_size" | "description") => true,
            (false, _) => false,
        }
    }

    /// Whether jobs may be deleted for it while they are under way: a replicated consumer keeps its state
    /// on disk.
    pub(crate) fn loses_jobs_under_way(&self) -> bool {
        self.is_of_consumer() && self.option == MEM_STORAGE && self.wanted == "true"
    }

    fn is_of_consumer(&self) -> bool {
        self.place.contains('/')
    }
}

impl fmt::Display for Drift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { place, option, wanted, found } = self;
        write!(f, "{place}: {option} is {found}, not {wanted}")
    }
}

/// The options in which `found` differs from `wanted`. What we do not set is not compared, nor what
/// is fixed at birth.
pub(crate) fn drift(place: &str, wanted: &Value, found: &Value) -> Vec<Drift> {
    const FIXED_AT_BIRTH: &str = "first_seq";
    let nothing = Map::new();
    let wanted = wanted.as_object().unwrap_or(&nothing);
    let found = found.as_object().unwrap_or(&nothing);
    wanted
        .iter()
        .filter(|(option, _)| *option != FIXED_AT_BIRTH)
        .filter_map(|(option, wanted)| {
            let found = match (wanted, found.get(option)) {
                (_, Some(found)) => found,
                // The server leaves out what is off.
                (Value::Bool(_), None) => &Value::Bool(false),
                (_, None) => &Value::Null,
            };
            (!agree(option, wanted, found)).then(|| Drift {
                place: place.to_owned(),
                option: option.clone(),
                wanted: wanted.to_string(),
                found: found.to_string(),
            })
        })
        .collect()
}

fn agree(option: &str, wanted: &Value, found: &Value) -> bool {
    match (wanted, found) {
        // The server adds keys of its own.
        (Value::Object(wanted), Value::Object(found)) => {
            wanted.iter().all(|(key, value)| found.get(key) == Some(value))
        }
        // It writes no limit as 0 or -1.
        (Value::Number(_), _) if is_limit(option) => limit(wanted) == limit(found),
        _ => wanted == found,
    }
}

fn is_limit(option: &str) -> bool {
    option.starts_with("max_")
}

/// A limit as a number, where nothing, 0 and -1 all mean that there is none.
fn limit(value: &Value) -> Option<i64> {
    value.as_i64().filter(|limit| *limit > 0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn drift_names_what_differs_and_only_that() {
        let wanted = json!({
            "first_seq": 7, "metadata": { "tidemill.protocol": "1" }, "max_age": 0,
            "sealed": false, "max_msgs": 10_000_000, "discard": "new",
        });
        let mut found = wanted.clone();
        found["first_seq"] = json!(99);
        found["metadata"]["_nats.ver"] = json!("2.15.1");
        found["max_age"] = Value::Null;
        found.as_object_mut().expect("object").remove("sealed");
        assert_eq!(drift("S", &wanted, &found), []);
        found["max_msgs"] = json!(5);
        found["discard"] = json!("old");
        let drift = drift("S", &wanted, &found);
        assert_eq!(drift.len(), 2);
        assert_eq!(drift[0].to_string(), r#"S: discard is "old", not "new""#);
        assert_eq!(drift[1].to_string(), "S: max_msgs is 5, not 10000000");
        assert_eq!([drift[0].is_choice(), drift[1].is_choice()], [false, true]);
    }

    #[test]
    fn what_is_left_to_the_user_as_a_table() {
        let of = |place: &str, option: &str| Drift {
            place: place.to_owned(),
            option: option.to_owned(),
            wanted: "true".to_owned(),
            found: "false".to_owned(),
        };
        for (place, option, is_choice, loses_jobs) in [
            ("J", "num_replicas", true, false),
            ("J", "storage", true, false),
            ("J", "max_msgs", true, false),
            ("J", "discard", false, false),
            ("J/low", "ack_wait", true, false),
            ("J/low", "mem_storage", false, true),
            ("J/low", "max_deliver", false, false),
        ] {
            let drift = of(place, option);
            let told = (drift.is_choice(), drift.loses_jobs_under_way());
            assert_eq!(told, (is_choice, loses_jobs), "{drift}");
        }
        let kept_in_vain = Drift { wanted: "false".to_owned(), ..of("J/low", "mem_storage") };
        assert!(!kept_in_vain.loses_jobs_under_way(), "one server may keep it on disk");
    }
}
