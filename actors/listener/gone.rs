//! The end of a connection, for whoever waits for something else.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Wake, Waker};

use futures_util::task::AtomicWaker;
use ntex::io::IoBoxed;

/// Passes a call on to whoever waits now.
#[derive(Default)]
struct Bell(AtomicWaker);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.wake();
    }
}

/// Held by whoever waits.
#[derive(Default)]
struct Waiting(Arc<Bell>);

impl Drop for Waiting {
    fn drop(&mut self) {
        drop(self.0.0.take());
    }
}

/// Done when the connection has ended, or is about to. ntex keeps the waker of whoever has waited for that as long as the
/// connection lives, and a task's waker keeps the task's place in memory, which may be a kilobyte: so it is given this one.
pub(super) async fn gone(io: &IoBoxed) {
    let (waiting, disconnect) = (Waiting::default(), io.on_disconnect());
    let bell = Waker::from(Arc::clone(&waiting.0));
    poll_fn(|cx| {
        waiting.0.0.register(cx.waker());
        disconnect.poll_ready(&mut Context::from_waker(&bell))
    })
    .await;
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::poll;
    use ntex::SharedCfg;
    use ntex::io::Io;
    use ntex::io::testing::IoTest;

    use super::*;

    struct Counted(AtomicUsize);

    impl Wake for Counted {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[ntex::test]
    async fn whoever_waits_is_called_and_nobody_is_held_who_waits_no_more() {
        let (client, server) = IoTest::create();
        let io = IoBoxed::from(Io::new(server, SharedCfg::new("a test's")));
        let counted = Arc::new(Counted(AtomicUsize::new(0)));
        let waker = Waker::from(Arc::clone(&counted));
        {
            let mut waits = pin!(gone(&io));
            assert!(waits.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
            assert_eq!(Arc::strong_count(&counted), 3, "it is to be called");
        }
        assert_eq!(Arc::strong_count(&counted), 2, "the connection does not hold it");
        let mut waits = pin!(gone(&io));
        assert!(poll!(&mut waits).is_pending());
        client.close().await;
        waits.await;
        assert_eq!(counted.0.load(Ordering::SeqCst), 0);
    }
}
