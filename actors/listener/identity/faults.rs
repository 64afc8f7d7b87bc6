//! What no single key of the configuration can know about the ways to prove who one is.

use wakala::token::Algorithm;

use super::super::Options;
use crate::router;

/// Keys, and what is wrong with them.
#[must_use]
pub fn faults(listener: &Options, open: &router::Options, has_cores: bool) -> Vec<(&'static str, &'static str)> {
    let mut faults = Vec::new();
    let mut fault = |key, text| faults.push((key, text));
    if open.anonymous && has_cores {
        fault(
            "open.anonymous",
            "where anybody may connect there are no terminals, and no bank behind them: remove [cores]",
        );
    }
    if open.anonymous && (open.guests || listener.jwt.is_some() || listener.hook.is_some()) {
        fault(
            "open.anonymous",
            "where anybody may connect nobody is asked: remove open.guests, listener.jwt, listener.hook",
        );
    }
    if open.guests && listener.jwt.is_none() && listener.hook.is_none() {
        fault("open.guests", "needs listener.jwt or listener.hook: who else would vouch for a guest?");
    }
    let longest = open.publish.len().max(open.subscribe.len());
    if longest > open.templates_max {
        fault("open.templates_max", "is less than open.publish or open.subscribe has");
    }
    if let Some(jwt) = &listener.jwt {
        let hs256 = jwt.algorithms.contains(&Algorithm::HS256);
        if jwt.keys.is_none() && jwt.secret.is_none() {
            fault("listener.jwt", "needs `keys`, a JWK set or a public key in PEM, or `secret`");
        }
        if jwt.secret.is_some() && !hs256 {
            fault("listener.jwt.algorithms", "must have \"HS256\" for `secret`: whoever reads it can issue tokens");
        }
        if jwt.algorithms.is_empty() {
            fault("listener.jwt.algorithms", "must have one of \"RS256\", \"ES256\", \"EdDSA\", \"HS256\"");
        }
        if !jwt.terminals && !open.guests {
            fault("listener.jwt", "is for nobody: set open.guests, or listener.jwt.terminals");
        }
    }
    if let Some(hook) = &listener.hook {
        if let Some(why) = hook.address_fault() {
            fault("listener.hook.url", why);
        }
        if !hook.terminals && !open.guests {
            fault("listener.hook", "is for nobody: set open.guests, or listener.hook.terminals");
        }
        if hook.waiting_max >= listener.strangers_max {
            fault(
                "listener.hook.waiting_max",
                "must be less than listener.strangers_max, or those who wait keep others out",
            );
        }
    }
    faults
}
