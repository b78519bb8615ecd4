//! Number of events that consumers have not received.
//!
//! If a cursor is near the end, the records behind it are counted. Otherwise the number of matches is read from the lists
//! of the matching subjects: the length of a list minus the position of the cursor in it. If many consumers with
//! different cursors read the same subjects, their lists are read once for all of them. Subjects are matched here.

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;

use super::keys::Keys;
use super::script::infos::{Log, State};
use super::script::tail::{self, Entry};
use super::script::{Run, lag, sequences};
use super::subjects;
use crate::error::Result;
use crate::subject::SubjectIndex;

/// Limits of one call, and of the number of positions that are looked up.
#[derive(Debug, Clone, Copy)]
struct Work {
    /// Maximum number of lists in a call.
    lists: usize,
    /// Maximum number of entries in a reply.
    entries: usize,
    /// Number of positions that are looked up regardless of the number of lists.
    lookups: usize,
    /// Average number of positions in a list above which the list is read instead.
    lookups_per_list: usize,
}

const WORK: Work = Work { lists: 250, entries: 2_500, lookups: 2_000, lookups_per_list: 4 };

/// Consumers that read the same lists: by the sequence up to which they received the entries, their places in the
/// answer.
type Group = BTreeMap<u64, Vec<usize>>;

/// Groups by their filter.
type Filters<'a> = BTreeMap<&'a str, Group>;

/// A list, and the groups that read it.
struct List {
    key: String,
    groups: Vec<usize>,
}

/// Returns the number of retained matches that each consumer has not received. Consumers are given by name and state.
pub(super) async fn lags(
    server: &impl Run,
    keys: &Keys,
    operation: &'static str,
    prefix: &str,
    log: Log,
    consumers: &[(&str, &State)],
) -> Result<Vec<u64>> {
    lags_by(server, keys, operation, prefix, log, consumers, WORK).await
}

async fn lags_by(
    server: &impl Run,
    keys: &Keys,
    operation: &'static str,
    prefix: &str,
    log: Log,
    consumers: &[(&str, &State)],
    work: Work,
) -> Result<Vec<u64>> {
    let mut lags = vec![0; consumers.len()];
    if log.first >= log.behind {
        return Ok(lags);
    }
    let (dropped, newest) = (log.first.saturating_sub(1), log.behind.saturating_sub(1));
    let (mut near, mut far) = (Filters::new(), Filters::new());
    let (mut lists, mut groups) = (Vec::new(), Vec::new());
    for (place, ((name, state), lag)) in consumers.iter().zip(&mut lags).enumerate() {
        if state.backlog > 0 {
            lists.push(List { key: keys.backlog(name), groups: vec![groups.len()] });
            groups.push(Group::from([(dropped, vec![place])]));
        }
        let from = state.cursor.max(dropped);
        let unread = newest.saturating_sub(from);
        if log.is_gapless && subjects::is_everything(&state.filter, prefix) {
            *lag = unread;
        } else if unread > 0 {
            // To walk over a record costs no more than to look at a subject and into its list.
            let is_near = subjects::has_wildcard(&state.filter) && unread <= log.subjects;
            let filters = if is_near { &mut near } else { &mut far };
            filters.entry(&state.filter).or_default().entry(from).or_default().push(place);
        }
    }
    let mut counts = by_record(server, keys, operation, near, newest).await?;

    let filters: HashMap<&str, usize> = far.keys().copied().zip(groups.len()..).collect();
    groups.extend(far.into_values());
    add_lists(server, keys, operation, &filters, &mut lists).await?;
    let lookups = lists.iter().flat_map(|list| &list.groups).filter_map(|group| groups.get(*group));
    let lookups: usize = lookups.map(BTreeMap::len).sum();
    counts.extend(if lookups <= work.lookups.max(lists.len().saturating_mul(work.lookups_per_list)) {
        by_position(server, operation, &lists, &groups, work).await?
    } else {
        by_entry(server, operation, &lists, &groups, work).await?
    });
    for (place, count) in counts {
        if let Some(lag) = lags.get_mut(place) {
            *lag += count;
        }
    }
    Ok(lags)
}

/// Walks over the records behind the lowest cursor, and counts them for all consumers together. Returns places and
/// counts.
async fn by_record(
    server: &impl Run,
    keys: &Keys,
    operation: &'static str,
    filters: Filters<'_>,
    newest: u64,
) -> Result<Vec<(usize, u64)>> {
    let lowest = filters.values().filter_map(|group| group.keys().next()).min().copied();
    let Some(mut after) = lowest else { return Ok(Vec::new()) };
    let mut index = SubjectIndex::new();
    for (group, filter) in filters.keys().enumerate() {
        // An invalid filter, which only damage can cause, matches nothing.
        let _ = index.insert(filter, group);
    }
    let mut tallies: Vec<Tally<'_>> = filters.values().map(Tally::new).collect();
    while after < newest {
        let call = tail::tail(keys, after.saturating_add(1), newest);
        let entries = tail::read(server.run(operation, &call).await?)?;
        let Some(last) = entries.last() else { break };
        after = last.sequence;
        for Entry { sequence, subject } in entries {
            if subject.is_empty() {
                // Every consumer must learn of a record that another program wrote.
                tallies.iter_mut().for_each(|tally| tally.add(sequence));
            } else {
                index.for_each_match(&subject, |group| {
                    if let Some(tally) = tallies.get_mut(*group) {
                        tally.add(sequence);
                    }
                });
            }
        }
    }
    Ok(tallies.into_iter().flat_map(Tally::counts).collect())
}

/// Adds the lists of the subjects that match these filters, each with its group.
async fn add_lists(
    server: &impl Run,
    keys: &Keys,
    operation: &'static str,
    filters: &HashMap<&str, usize>,
    lists: &mut Vec<List>,
) -> Result<()> {
    if !filters.keys().any(|filter| subjects::has_wildcard(filter)) {
        let exact = filters.iter().map(|(filter, group)| (keys.subject(filter), vec![*group]));
        lists.extend(exact.map(|(key, groups)| List { key, groups }));
        return Ok(());
    }
    let mut index = SubjectIndex::new();
    for (filter, group) in filters {
        // An invalid filter, which only damage can cause, matches nothing.
        let _ = index.insert(filter, *group);
    }
    let literals = filters.keys().copied().map(subjects::literal_of);
    let literal = literals.reduce(common_start).unwrap_or_default();
    subjects::visit(server, keys, operation, literal, |subject| {
        let mut groups = Vec::new();
        index.for_each_match(&subject, |group| groups.push(*group));
        if !groups.is_empty() {
            lists.push(List { key: keys.subject(&subject), groups });
        }
        ControlFlow::Continue(())
    })
    .await
}

fn common_start<'a>(a: &'a str, b: &str) -> &'a str {
    let common = a.char_indices().zip(b.chars()).find(|((_, a), b)| a != b);
    let end = common.map_or(a.len().min(b.len()), |((end, _), _)| end);
    a.get(..end).unwrap_or_default()
}

/// Counts by the positions of the cursors. Returns places and counts.
async fn by_position(
    server: &impl Run,
    operation: &'static str,
    lists: &[List],
    groups: &[Group],
    work: Work,
) -> Result<Vec<(usize, u64)>> {
    let mut lookups = Vec::new();
    for list in lists {
        for group in list.groups.iter().filter_map(|group| groups.get(*group)) {
            lookups.extend(group.iter().map(|(from, places)| (list.key.as_str(), *from, places)));
        }
    }
    let mut counts = Vec::new();
    let mut rest = lookups.as_slice();
    while !rest.is_empty() {
        let call = lag::lag(rest.iter().take(work.lists).map(|(list, from, _)| (*list, *from)));
        let counted = lag::read(server.run(operation, &call).await?)?;
        for ((_, _, places), count) in rest.iter().zip(&counted) {
            counts.extend(places.iter().map(|place| (*place, *count)));
        }
        rest = rest.get(counted.len()..).unwrap_or_default();
    }
    Ok(counts)
}

/// Reads every list once, from the lowest cursor on, and counts its entries for all consumers together. Returns places
/// and counts.
async fn by_entry(
    server: &impl Run,
    operation: &'static str,
    lists: &[List],
    groups: &[Group],
    work: Work,
) -> Result<Vec<(usize, u64)>> {
    let mut tallies: Vec<Tally<'_>> = groups.iter().map(Tally::new).collect();
    let mut rest = lists;
    let mut after = None;
    while !rest.is_empty() {
        let lowest = |list: &List| {
            let groups = list.groups.iter().filter_map(|group| groups.get(*group)?.keys().next());
            groups.min().copied().unwrap_or_default()
        };
        let asked = rest.iter().take(work.lists).enumerate().map(|(place, list)| {
            (list.key.as_str(), after.filter(|_| place == 0).unwrap_or_else(|| lowest(list)))
        });
        let entries = sequences::read(
            server.run(operation, &sequences::sequences(asked, work.entries)).await?,
            work.entries,
        )?;
        for (list, entries) in rest.iter().zip(&entries.lists) {
            for group in &list.groups {
                if let Some(tally) = tallies.get_mut(*group) {
                    entries.iter().for_each(|sequence| tally.add(*sequence));
                }
            }
        }
        // The next call continues the last list if that may have further entries.
        after = entries.lists.last().and_then(|entries| entries.last()).copied().filter(|_| entries.is_cut);
        let complete = entries.lists.len() - usize::from(after.is_some());
        rest = rest.get(complete..).unwrap_or_default();
    }
    Ok(tallies.into_iter().flat_map(Tally::counts).collect())
}

/// Counts entries for a group.
struct Tally<'a> {
    /// The positions, in ascending order.
    positions: Vec<(u64, &'a [usize])>,
    /// Number of entries by the number of positions before them.
    entries: Vec<u64>,
}

impl<'a> Tally<'a> {
    fn new(group: &'a Group) -> Self {
        let positions: Vec<_> = group.iter().map(|(from, places)| (*from, places.as_slice())).collect();
        Self { entries: vec![0; positions.len() + 1], positions }
    }

    fn add(&mut self, sequence: u64) {
        let before = self.positions.partition_point(|(from, _)| *from < sequence);
        if let Some(entries) = self.entries.get_mut(before) {
            *entries += 1;
        }
    }

    /// Returns places and the number of entries behind their positions.
    fn counts(self) -> Vec<(usize, u64)> {
        let mut left: u64 = self.entries.iter().sum();
        let mut counts = Vec::new();
        for (entries, (_, places)) in self.entries.iter().zip(self.positions) {
            left -= entries;
            counts.extend(places.iter().map(|place| (*place, left)));
        }
        counts
    }
}

#[cfg(test)]
mod tests;
