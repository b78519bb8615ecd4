//! Names of the keys of a stream.

/// The keys of one stream. They have one hash tag, so that a cluster keeps them on one node.
#[derive(Debug, Clone)]
pub(super) struct Keys {
    /// The beginning of every key.
    base: String,
}

impl Keys {
    pub(super) fn new(key_prefix: &str, stream: &str) -> Self {
        Self { base: format!("{key_prefix}:{{{stream}}}:") }
    }

    /// Returns what every key begins with. A script makes the keys of subjects and consumers of it that its caller
    /// cannot know.
    pub(super) fn base(&self) -> &str {
        &self.base
    }

    /// The log: a stream of records with ids of sequence and storage time.
    pub(super) fn log(&self) -> String {
        self.key("log")
    }

    /// Format, prefix, limits and counters of the stream.
    pub(super) fn meta(&self) -> String {
        self.key("meta")
    }

    /// Subjects that have retained events.
    pub(super) fn subjects(&self) -> String {
        self.key("subj")
    }

    /// Sequences of a subject, ascending. A hint, which readers verify.
    pub(super) fn subject(&self, subject: &str) -> String {
        format!("{}s:{subject}", self.base)
    }

    /// Sequence and storage time of each `msg_id`.
    pub(super) fn ids(&self) -> String {
        self.key("ids")
    }

    /// The `msg_id`s in the order of their events.
    pub(super) fn id_queue(&self) -> String {
        self.key("idq")
    }

    /// Generation of each consumer and, after a space, the pattern of its filter.
    pub(super) fn consumers(&self) -> String {
        self.key("cons")
    }

    /// Time of the last fetch of each ephemeral consumer.
    pub(super) fn ephemerals(&self) -> String {
        self.key("eph")
    }

    /// Settings and state of a consumer.
    pub(super) fn consumer(&self, name: &str) -> String {
        format!("{}c:{name}", self.base)
    }

    /// Pending sequences of a consumer by their due time.
    pub(super) fn due(&self, name: &str) -> String {
        format!("{}c:{name}:due", self.base)
    }

    /// Attempts of pending events, where they are not the first.
    pub(super) fn attempts(&self, name: &str) -> String {
        format!("{}c:{name}:att", self.base)
    }

    /// Sequences that a consumer delivers before it moves its cursor.
    pub(super) fn backlog(&self, name: &str) -> String {
        format!("{}c:{name}:back", self.base)
    }

    /// Cursors of the consumers that have not fallen behind retention.
    pub(super) fn cursors(&self) -> String {
        self.key("cursors")
    }

    /// Dropped matches of each filter whose consumers have fallen behind retention.
    pub(super) fn overtaken(&self) -> String {
        self.key("over")
    }

    /// Number of events that consumers missed which have fallen behind retention, or of whose events some were purged.
    pub(super) fn lagged(&self) -> String {
        self.key("lagged")
    }

    /// Channel on which scripts announce new work.
    pub(super) fn channel(&self) -> String {
        self.key("wake")
    }

    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.base)
    }
}

/// Returns the type of the value that a key of a stream holds, as the server names it.
pub(super) fn type_of(key: &[u8]) -> Option<&'static str> {
    let key = str::from_utf8(key).ok()?;
    let (_, name) = key.split_once("}:")?;
    Some(match name {
        "log" => "stream",
        "meta" | "ids" | "cons" | "over" => "hash",
        "subj" | "eph" | "cursors" => "zset",
        "idq" => "list",
        _ if name.starts_with("s:") => "list",
        _ if !name.starts_with("c:") => return None,
        _ if name.ends_with(":due") => "zset",
        _ if name.ends_with(":back") => "list",
        _ => "hash",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_a_type() {
        let keys = Keys::new("a3s", "S");
        for (key, expected) in [
            (keys.log(), "stream"),
            (keys.meta(), "hash"),
            (keys.subjects(), "zset"),
            (keys.subject("events.a:due"), "list"),
            (keys.ids(), "hash"),
            (keys.id_queue(), "list"),
            (keys.consumers(), "hash"),
            (keys.ephemerals(), "zset"),
            (keys.consumer("c"), "hash"),
            (keys.due("c"), "zset"),
            (keys.attempts("c"), "hash"),
            (keys.backlog("c"), "list"),
            (keys.cursors(), "zset"),
            (keys.overtaken(), "hash"),
        ] {
            assert_eq!(type_of(key.as_bytes()), Some(expected), "{key}");
        }
        assert_eq!(type_of(b"a3s:{S}:other"), None);
        assert_eq!(type_of(b"log"), None);
    }
}
