//! What happens in an agent's run, as events.
//!
//! Every struct keeps the fields that it does not know in `extra`, and [`AgentEvent`] keeps events that
//! it does not know, or cannot read, as they are: what comes in goes out unchanged. The one exception
//! are numbers that no machine has a type for: integers beyond 64 bits become the nearest floating-point
//! number, and one beyond its range is no event. To keep those would change how `serde_json` reads
//! numbers in the user's whole build.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::run::RunId;

/// Declares the events: their structs, and the enum with its codec.
macro_rules! events {
    ($(
        $(#[$doc:meta])*
        $variant:ident($name:ident)
    ),* $(,)?) => {
        /// Something that happened in a run. On the wire it is an object with one field, whose name
        /// says what: `{"RunCancelled": {"run_id": "…", "timestamp": "…"}}`. One that has nothing more
        /// to say, as a later version may add, is a word.
        #[derive(Clone, Debug, PartialEq)]
        #[non_exhaustive]
        pub enum AgentEvent {
            $($(#[$doc])* $variant($name),)*
            /// One that is not known here, or that cannot be read: as it came.
            Other(Value),
        }

        impl AgentEvent {
            /// The run that it happened in; `None` where an unknown event does not tell.
            pub fn run_id(&self) -> Option<RunId> {
                match self {
                    $(Self::$variant(event) => Some(event.run_id),)*
                    Self::Other(event) => {
                        let (_, fields) = event.as_object()?.iter().next()?;
                        serde_json::from_value(fields.get("run_id")?.clone()).ok()
                    }
                }
            }

            /// What happened, by its name on the wire; empty where an unknown event does not tell.
            pub fn name(&self) -> &str {
                match self {
                    $(Self::$variant(_) => stringify!($variant),)*
                    Self::Other(event) => name(event).unwrap_or_default(),
                }
            }
        }

        impl Serialize for AgentEvent {
            fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
                const INDEX: u32 = 0;
                match self {
                    $(Self::$variant(event) => {
                        out.serialize_newtype_variant("AgentEvent", INDEX, stringify!($variant), event)
                    })*
                    Self::Other(event) => event.serialize(out),
                }
            }
        }

        impl<'de> Deserialize<'de> for AgentEvent {
            fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
                let value = Value::deserialize(input)?;
                let Some(name) = name(&value) else {
                    return Err(de::Error::custom("an event is a word, or an object with one field"));
                };
                let fields = &value[name];
                let known = match name {
                    $(stringify!($variant) => $name::deserialize(fields).ok().map(Self::$variant),)*
                    _ => None,
                };
                Ok(known.unwrap_or(Self::Other(value)))
            }
        }
    };
}

/// The name of what is written as an enum's variant; `None` for what is not.
pub(super) fn name(value: &Value) -> Option<&str> {
    let Value::Object(fields) = value else { return value.as_str() };
    let mut names = fields.keys();
    names.next().filter(|_| names.next().is_none()).map(String::as_str)
}

events! {
    /// The run has started.
    RunStarted(RunStarted),
    /// The context of the conversation is there.
    ContextBuilt(ContextBuilt),
    /// The model is being called.
    ModelStarted(ModelStarted),
    /// The model said something.
    TextDelta(TextDelta),
    /// The model begins to call a tool.
    ToolCallStarted(ToolCallStarted),
    /// A piece of the arguments of a call.
    ToolCallDelta(ToolCallDelta),
    /// The call is whole.
    ToolCallCompleted(ToolCallCompleted),
    /// A tool runs.
    ToolExecutionStarted(ToolExecutionStarted),
    /// A tool has run.
    ToolExecutionFinished(ToolExecutionFinished),
    /// What the model said is stored.
    AssistantMessageCommitted(MessageCommitted),
    /// What a tool said is stored.
    ToolMessageCommitted(MessageCommitted),
    /// What the model used up.
    UsageRecorded(UsageRecorded),
    /// The run has come to its end.
    RunCompleted(RunCompleted),
    /// The run has failed.
    RunFailed(RunFailed),
    /// The run was cancelled.
    RunCancelled(RunCancelled),
    /// The model goes round in circles.
    DoomLoopDetected(DoomLoopDetected),
    /// Compacting the context has failed too often and is given up.
    CompactionCircuitOpened(CompactionCircuitOpened),
}

impl AgentEvent {
    /// Whether the run is over with it.
    pub fn is_terminal(&self) -> bool {
        matches!(self, Self::RunCompleted(_) | Self::RunFailed(_) | Self::RunCancelled(_))
    }
}

/// Declares the struct of an event, with the fields that all have.
macro_rules! event {
    ($(#[$doc:meta])* $name:ident { $($(#[$of:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        pub struct $name {
            /// The run.
            pub run_id: RunId,
            $($(#[$of])* pub $field: $type,)*
            /// When it happened.
            pub timestamp: DateTime<Utc>,
            /// Fields that are not known here.
            #[serde(flatten)]
            pub extra: Map<String, Value>,
        }
    };
}

event! {
    /// See [`AgentEvent::RunStarted`].
    RunStarted {
        /// The session that the run belongs to.
        session_id: Uuid,
        /// Who runs the model.
        provider: String,
        /// The model.
        model: String,
    }
}
event! {
    /// See [`AgentEvent::ContextBuilt`].
    ContextBuilt {
        /// Messages in it.
        message_count: u64,
    }
}
event! {
    /// See [`AgentEvent::ModelStarted`].
    ModelStarted {
        /// Who runs the model.
        provider: String,
        /// The model.
        model: String,
        /// Which call of the run it is.
        iteration: u64,
    }
}
event! {
    /// See [`AgentEvent::TextDelta`].
    TextDelta {
        /// What was said.
        delta: String,
    }
}
event! {
    /// See [`AgentEvent::ToolCallStarted`].
    ToolCallStarted {
        /// The call.
        call_id: String,
        /// The tool.
        tool_name: String,
    }
}
event! {
    /// See [`AgentEvent::ToolCallDelta`].
    ToolCallDelta {
        /// The call.
        call_id: String,
        /// A piece of the arguments' JSON.
        delta: String,
    }
}
event! {
    /// See [`AgentEvent::ToolCallCompleted`].
    ToolCallCompleted {
        /// The call.
        call: ToolCall,
    }
}
event! {
    /// See [`AgentEvent::ToolExecutionStarted`].
    ToolExecutionStarted {
        /// The call.
        call_id: String,
        /// The tool.
        tool_name: String,
    }
}
event! {
    /// See [`AgentEvent::ToolExecutionFinished`].
    ToolExecutionFinished {
        /// The call.
        call_id: String,
        /// The tool.
        tool_name: String,
        /// What came of it.
        result: ToolExecutionResult,
        /// How long it took, in milliseconds.
        duration_ms: u64,
    }
}
event! {
    /// See [`AgentEvent::AssistantMessageCommitted`] and [`AgentEvent::ToolMessageCommitted`].
    MessageCommitted {
        /// The message.
        message_id: Uuid,
    }
}
event! {
    /// See [`AgentEvent::UsageRecorded`].
    UsageRecorded {
        /// How much.
        usage: TokenUsage,
    }
}
event! {
    /// See [`AgentEvent::RunCompleted`].
    RunCompleted {
        /// Why the model stopped.
        finish_reason: FinishReason,
        /// Calls of the model.
        iterations: u64,
    }
}
event! {
    /// See [`AgentEvent::RunFailed`].
    RunFailed {
        /// What went wrong.
        error: String,
    }
}
event! {
    /// See [`AgentEvent::RunCancelled`].
    RunCancelled {}
}
event! {
    /// See [`AgentEvent::DoomLoopDetected`].
    DoomLoopDetected {
        /// The circles.
        description: String,
    }
}
event! {
    /// See [`AgentEvent::CompactionCircuitOpened`].
    CompactionCircuitOpened {
        /// How often it failed in a row.
        consecutive_failures: u32,
    }
}

/// A call of a tool by the model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ToolCall {
    /// What the provider calls it.
    pub id: String,
    /// The tool.
    pub name: String,
    /// Its arguments.
    pub arguments: Value,
    /// Fields that are not known here.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// What a tool came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToolExecutionResult {
    /// It did its work.
    Success {
        /// What it gave.
        output: Value,
        /// Fields that are not known here.
        #[serde(flatten)]
        extra: Map<String, Value>,
    },
    /// It failed.
    Failure {
        /// What went wrong.
        error: String,
        /// Fields that are not known here.
        #[serde(flatten)]
        extra: Map<String, Value>,
    },
    /// What is not known here.
    #[serde(untagged)]
    Other(Value),
}

/// Tokens that went in and came out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenUsage {
    /// In.
    pub input_tokens: u64,
    /// Out.
    pub output_tokens: u64,
    /// Both.
    pub total_tokens: u64,
    /// Fields that are not known here.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// Why the model stopped.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FinishReason {
    /// It had said all.
    Stop,
    /// It called tools.
    ToolCalls,
    /// It had no tokens left.
    Length,
    /// The provider did not let it go on.
    ContentFilter,
    /// The provider failed.
    Error,
    /// The provider's own reason.
    Unknown(String),
    /// What is not known here.
    #[serde(untagged)]
    Other(Value),
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const RUN: &str = "013532ce-c8c2-4d5c-9ea5-f42f9d6ad08c";

    /// One of each, as the runtime's own crate writes them.
    fn one_of_each() -> Vec<Value> {
        let at = "2026-11-23T07:00:05.419310569Z";
        let event = |name: &str, mut fields: Value| {
            fields["run_id"] = json!(RUN);
            fields["timestamp"] = json!(at);
            json!({ name: fields })
        };
        let id = "a4fb2110-5bdc-4f36-9a43-a6a9f5a12032";
        vec![
            event("RunStarted", json!({"session_id": id, "provider": "openai", "model": "gpt-x"})),
            event("ContextBuilt", json!({"message_count": 3})),
            event("ModelStarted", json!({"provider": "openai", "model": "gpt-x", "iteration": 1})),
            event("TextDelta", json!({"delta": "héllo \"quoted\"\n🙂"})),
            event("ToolCallStarted", json!({"call_id": "c", "tool_name": "search"})),
            event("ToolCallDelta", json!({"call_id": "c", "delta": "{\"q\":"})),
            event(
                "ToolCallCompleted",
                json!({"call": {"id": "c", "name": "search", "arguments": {"q": "x", "n": 3}}}),
            ),
            event("ToolExecutionStarted", json!({"call_id": "c", "tool_name": "search"})),
            event(
                "ToolExecutionFinished",
                json!({"call_id": "c", "tool_name": "search", "duration_ms": 12,
                    "result": {"Success": {"output": [1, 2]}}}),
            ),
            event(
                "ToolExecutionFinished",
                json!({"call_id": "c", "tool_name": "search", "duration_ms": 12,
                    "result": {"Failure": {"error": "no"}}}),
            ),
            event("AssistantMessageCommitted", json!({"message_id": id})),
            event("ToolMessageCommitted", json!({"message_id": id})),
            event(
                "UsageRecorded",
                json!({"usage": {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}}),
            ),
            event("RunCompleted", json!({"finish_reason": "stop", "iterations": 2})),
            event("RunCompleted", json!({"finish_reason": {"unknown": "tired"}, "iterations": 2})),
            event("RunFailed", json!({"error": "provider unavailable"})),
            event("RunCancelled", json!({})),
            event("DoomLoopDetected", json!({"description": "again and again"})),
            event("CompactionCircuitOpened", json!({"consecutive_failures": 3})),
        ]
    }

    fn round_trip(value: &Value) -> AgentEvent {
        let event: AgentEvent = serde_json::from_value(value.clone()).expect("reads");
        assert_eq!(serde_json::to_value(&event).expect("writes"), *value);
        event
    }

    #[test]
    fn all_events_are_typed_and_come_out_as_they_went_in() {
        for value in one_of_each() {
            let event = round_trip(&value);
            assert!(!matches!(event, AgentEvent::Other(_)), "{value}");
            assert_eq!(event.run_id().expect("told").to_string(), RUN);
            assert!(value.get(event.name()).is_some());
        }
    }

    /// Adds a field to each object but one that is the tag of a variant, at any depth.
    fn add_to_every_object(value: &mut Value) {
        let Value::Object(fields) = value else { return };
        fields.values_mut().for_each(add_to_every_object);
        let is_tag = ["Success", "Failure", "unknown"].iter().any(|tag| fields.contains_key(*tag));
        if !is_tag {
            fields.insert("added_later".to_owned(), json!({"deep": [1.5, null]}));
        }
    }

    #[test]
    fn what_a_later_version_adds_goes_through() {
        for mut value in one_of_each() {
            let fields = value.as_object_mut().and_then(|event| event.values_mut().next());
            add_to_every_object(fields.expect("fields"));
            assert!(!matches!(round_trip(&value), AgentEvent::Other(_)), "{value}");
        }
        let unknown = json!({"RunPaused": {"run_id": RUN, "by": "somebody"}});
        let event = round_trip(&unknown);
        assert_eq!(
            (event.name(), event.run_id().expect("told").to_string()),
            ("RunPaused", RUN.into())
        );
        let word = round_trip(&json!("RunPaused"));
        assert_eq!((word.name(), word.run_id()), ("RunPaused", None));
        for none in [json!(7), json!(null), json!([]), json!({}), json!({"A": 1, "B": 2})] {
            assert!(serde_json::from_value::<AgentEvent>(none.clone()).is_err(), "{none}");
        }
        // Of a kind that is known, with a field that has become another type.
        let changed =
            json!({"RunFailed": {"run_id": RUN, "error": {"code": 7}, "timestamp": "now"}});
        assert!(matches!(round_trip(&changed), AgentEvent::Other(_)));
        for known in [json!({"finish_reason": "bored"}), json!({"finish_reason": {"later": 1}})] {
            let mut completed = json!({"RunCompleted": {"run_id": RUN, "iterations": 1,
                "timestamp": "2026-11-23T07:00:05Z"}});
            completed["RunCompleted"]["finish_reason"] = known["finish_reason"].clone();
            assert!(matches!(round_trip(&completed), AgentEvent::RunCompleted(_)));
        }
    }

    proptest! {
        #[test]
        fn whatever_an_event_is_it_is_not_changed(
            name in "[A-Za-z]{1,20}",
            key in ".{0,8}",
            n in any::<i64>(),
            x in prop::num::f64::NORMAL | prop::num::f64::SUBNORMAL | prop::num::f64::ZERO,
        ) {
            let text = json!({ name: { key: [json!(n), json!(x)] } }).to_string();
            let event: AgentEvent = serde_json::from_str(&text).expect("reads");
            prop_assert_eq!(serde_json::to_string(&event).expect("writes"), text);
        }
    }
}
