//! A connection that may last until some moment: that at which what its client was let in with is good no longer.

use std::time::{Duration, SystemTime};

use actix::prelude::*;
use ntex_mqtt::v5::codec::DisconnectReasonCode as Reason;
use wakala::session::Event;
use wakala::time::Time;

use super::Session;

/// Until when a connection may last, by the calendar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub(crate) struct Lease {
    pub(crate) until: Time,
}

/// The longest wait: the calendar may be set meanwhile.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// Now, by the calendar. What others have dated is not judged by a clock that was anchored when the node started.
#[must_use]
pub(crate) fn calendar() -> Time {
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    Time::from_millis(i64::try_from(since_1970.as_millis()).unwrap_or(i64::MAX))
}

impl Handler<Lease> for Session {
    type Result = ();

    fn handle(&mut self, lease: Lease, ctx: &mut Context<Self>) {
        // Not at once, though it be over: CONNACK comes first.
        let left = lease.until.since(calendar());
        ctx.run_later(left.min(LOOK_EVERY), move |this, ctx| {
            if lease.until > calendar() {
                return this.handle(lease, ctx);
            }
            let why = "what the client was let in with is good no longer";
            tracing::info!(client = %this.twin.client(), why, "a session was ended");
            this.event(Event::End(Reason::MaximumConnectTime, why), ctx);
        });
    }
}
