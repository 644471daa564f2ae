//! Panics of handlers: caught, with message and backtrace, so that they are failed attempts.
//!
//! Where a panic came from is known only while it happens. A hook that stands before the program's
//! own therefore notes the backtrace, on threads that are running a handler and nowhere else, and
//! passes every panic on.

use std::any::Any;
use std::backtrace::Backtrace;
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Once;
use std::task::Poll;

use crate::outcome::{JobError, Outcome};

thread_local! {
    static IN_HANDLER: Cell<bool> = const { Cell::new(false) };
    static BACKTRACE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Puts our hook before the program's, once.
pub(super) fn watch() {
    static WATCHING: Once = Once::new();
    WATCHING.call_once(|| {
        let pass_on = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if IN_HANDLER.get() {
                BACKTRACE.set(Some(Backtrace::force_capture().to_string()));
            }
            pass_on(panic);
        }));
    });
}

/// Runs a blocking handler; a panic in it becomes its error.
pub(super) fn capture(call: impl FnOnce() -> Outcome) -> Outcome {
    guarded(call).unwrap_or_else(Err)
}

/// Runs an async handler; a panic in it becomes its error.
pub(super) async fn capture_async(handler: impl Future<Output = Outcome>) -> Outcome {
    let mut handler = pin!(handler);
    std::future::poll_fn(|cx| match guarded(|| handler.as_mut().poll(cx)) {
        Ok(poll) => poll,
        Err(panic) => Poll::Ready(Err(panic)),
    })
    .await
}

fn guarded<T>(call: impl FnOnce() -> T) -> Result<T, JobError> {
    let outer = IN_HANDLER.replace(true);
    // What a handler left half done is dropped with it.
    let returned = catch_unwind(AssertUnwindSafe(call));
    IN_HANDLER.set(outer);
    returned.map_err(|panic| {
        JobError::failed(format!("panicked: {}", message(&*panic)))
            .kind("panic")
            .with_backtrace(BACKTRACE.take())
    })
}

fn message(panic: &(dyn Any + Send)) -> &str {
    if let Some(text) = panic.downcast_ref::<&str>() {
        text
    } else if let Some(text) = panic.downcast_ref::<String>() {
        text
    } else {
        "with something other than text"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_with_message_and_backtrace() {
        watch();
        let error = capture(|| panic!("out of {}", "cheese")).expect_err("panicked");
        assert_eq!(error.info().kind, "panic");
        assert_eq!(error.info().message, "panicked: out of cheese");
        let backtrace = error.info().backtrace.as_deref().expect("captured");
        assert!(backtrace.contains("a_panic_is_an_error_with_message_and_backtrace"));
    }

    #[tokio::test]
    async fn an_async_panic_too() {
        watch();
        let outcome = capture_async(async {
            tokio::task::yield_now().await;
            panic!("late")
        });
        assert_eq!(outcome.await.expect_err("panicked").info().message, "panicked: late");
    }
}
