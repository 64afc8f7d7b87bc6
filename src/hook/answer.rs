//! What the hook answers, read with suspicion: it is another program.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use super::Decision;
use crate::session::{NoTemplate, Template};

/// What is granted to a client that is let in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allowed {
    /// Topic templates; none where the hook does not say.
    pub publish: Option<Vec<Template>>,
    pub subscribe: Option<Vec<Template>>,
    /// Its connection is to end after so long.
    pub session: Option<Duration>,
}

/// How long decisions hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetimes {
    /// To let in, where the hook does not say.
    pub allowed: Duration,
    /// To keep out, where the hook does not say.
    pub denied: Duration,
    /// Whatever the hook says.
    pub max: Duration,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Said {
    result: Word,
    /// Seconds.
    ttl: Option<u32>,
    publish: Option<Vec<String>>,
    subscribe: Option<Vec<String>>,
    /// Seconds.
    session: Option<u32>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Word {
    Allow,
    Deny,
}

/// A decision, and how long it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub decision: Decision,
    pub holds: Duration,
}

/// Why an answer is none.
#[derive(Debug, thiserror::Error)]
pub enum NoAnswer {
    #[error("not {{\"result\": \"allow\" or \"deny\", …}}: {0}")]
    Json(#[from] serde_json::Error),
    #[error(transparent)]
    Template(#[from] NoTemplate),
    #[error("more than {0} topic templates")]
    TooMany(usize),
}

impl Answer {
    /// # Errors
    /// When it is not what was agreed on. Then nothing of it counts.
    pub fn read(bytes: &[u8], lifetimes: &Lifetimes, templates_max: usize) -> Result<Self, NoAnswer> {
        let said: Said = serde_json::from_slice(bytes)?;
        let templates = |texts: Option<Vec<String>>| {
            let Some(texts) = texts else { return Ok(None) };
            if texts.len() > templates_max {
                return Err(NoAnswer::TooMany(templates_max));
            }
            let read: Result<Vec<_>, _> = texts.iter().map(|text| Template::new(text)).collect();
            Ok(Some(read?))
        };
        let (publish, subscribe) = (templates(said.publish)?, templates(said.subscribe)?);
        let seconds = |seconds: u32| Duration::from_secs(seconds.into());
        let (decision, usual) = match said.result {
            Word::Allow => {
                let session = said.session.map(seconds);
                (Decision::Allow(Arc::new(Allowed { publish, subscribe, session })), lifetimes.allowed)
            }
            Word::Deny => (Decision::Deny, lifetimes.denied),
        };
        Ok(Self { decision, holds: said.ttl.map_or(usual, seconds).min(lifetimes.max) })
    }
}
