//! Which group is whose.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use millrace_core::fleet::Pool;
use millrace_runtime::status::Fault;

use super::group::Group;

/// The key of a pool's template that names its group, alone or with a dot and a zone.
const KEY: &str = "node-group";

/// The groups that pools have named; as many as pools and their zones.
#[derive(Debug, Default)]
pub(super) struct Groups {
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// Whether it was ever said which there are: without that nobody knows what to list.
    assigned: bool,
    by_id: BTreeMap<String, Arc<Group>>,
}

impl Groups {
    /// The groups of these pools, in place of all others. What is remembered of those that stay is kept.
    pub(super) fn assign(&self, pools: &[Pool]) {
        let mut known = self.known();
        let before = std::mem::take(&mut known.by_id);
        known.assigned = true;
        for pool in pools {
            let none = [String::new()];
            for zone in if pool.zones.is_empty() { &none[..] } else { &pool.zones[..] } {
                let Ok(id) = named(&pool.template, zone) else { continue };
                let same = before.get(id).filter(|group| group.pool == pool.name && group.zone == *zone);
                let group = || same.cloned().unwrap_or_else(|| Arc::new(Group::new(id, &pool.name, zone)));
                known.by_id.entry(id.to_owned()).or_insert_with(group);
            }
        }
    }

    /// The group of a pool and zone by its template, which is known from then on.
    ///
    /// # Errors
    /// Why there is none, for people.
    pub(super) fn of(&self, pool: &str, zone: &str, template: &BTreeMap<String, String>) -> Result<Arc<Group>, String> {
        let id = named(template, zone)?;
        let mut known = self.known();
        let group = known.by_id.entry(id.to_owned()).or_insert_with(|| Arc::new(Group::new(id, pool, zone)));
        match group.pool == pool && group.zone == zone {
            true => Ok(Arc::clone(group)),
            false => Err(format!(
                "node group {id} is that of pool {} zone `{}`: give pool {pool} zone `{zone}` one of its own, \
                 with the template key `{KEY}.{zone}`",
                group.pool, group.zone
            )),
        }
    }

    /// The group of a pool and zone, as far as is known.
    pub(super) fn find(&self, pool: &str, zone: &str) -> Option<Arc<Group>> {
        self.known().by_id.values().find(|group| group.pool == pool && group.zone == zone).cloned()
    }

    /// All of them, in the order of their ids.
    ///
    /// # Errors
    /// FAILED_PRECONDITION while nobody has said which there are: a listing without some would look as if their nodes were gone.
    pub(super) fn all(&self) -> Result<Vec<Arc<Group>>, Fault> {
        let known = self.known();
        match known.assigned {
            true => Ok(known.by_id.values().cloned().collect()),
            false => Err(Fault::precondition("NO_GROUPS", "which node groups are the pools' has not been said yet")),
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn named<'a>(template: &'a BTreeMap<String, String>, zone: &str) -> Result<&'a str, String> {
    let own = template.get(&format!("{KEY}.{zone}")).filter(|_| !zone.is_empty());
    match own.or_else(|| template.get(KEY)).map(String::as_str) {
        Some(id) if !id.is_empty() => Ok(id),
        _ if zone.is_empty() => Err(format!("the pool's template has no `{KEY}`")),
        _ => Err(format!("the pool's template has no `{KEY}.{zone}` and no `{KEY}`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(name: &str, zones: &[&str], template: &[(&str, &str)]) -> Pool {
        let mut pool = Pool::new(name, "cloud", &["default"]);
        pool.zones = zones.iter().map(|zone| (*zone).into()).collect();
        pool.template = template.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        pool
    }

    #[test]
    fn every_zone_of_a_pool_has_a_group_of_its_own() {
        let groups = Groups::default();
        assert!(groups.all().is_err(), "nobody has said which there are");
        let zoned = pool("zoned", &["a", "b"], &[("node-group.a", "za"), ("node-group", "zb")]);
        let plain = pool("plain", &[], &[("node-group", "p")]);
        let greedy = pool("greedy", &["a", "b"], &[("node-group", "g")]);
        let other = pool("other", &[], &[("image", "x")]);
        groups.assign(&[zoned.clone(), plain.clone(), greedy.clone(), other]);
        let ids: Vec<_> = groups.all().unwrap().iter().map(|group| group.id.clone()).collect();
        assert_eq!(ids, ["g", "p", "za", "zb"]);
        assert_eq!(groups.find("zoned", "b").unwrap().id, "zb");
        assert_eq!(groups.of("plain", "", &plain.template).unwrap().id, "p");
        let error = groups.of("greedy", "b", &greedy.template).unwrap_err();
        assert!(error.contains("`node-group.b`") && error.contains("zone `a`"), "{error}");
        assert!(groups.of("x", "a", &BTreeMap::new()).unwrap_err().contains("`node-group.a`"));
    }

    #[test]
    fn what_is_remembered_of_a_group_outlives_a_change_of_others() {
        let groups = Groups::default();
        let one = pool("one", &[], &[("node-group", "g1")]);
        groups.assign(std::slice::from_ref(&one));
        let before = groups.find("one", "").unwrap();
        groups.assign(&[one, pool("two", &[], &[("node-group", "g2")])]);
        assert!(Arc::ptr_eq(&before, &groups.find("one", "").unwrap()));
        groups.assign(&[]);
        assert!(groups.find("one", "").is_none() && groups.all().unwrap().is_empty());
    }
}
