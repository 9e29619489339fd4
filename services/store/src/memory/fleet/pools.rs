//! Pools and their statuses.

use uuid::Uuid;

use crate::{
    Audit, NewPool, PoolChange, PoolDeletion, PoolRow, PoolStatusRow, PoolUpdate, Pools, Result, StoreError,
    books::POOLS_BOUND,
    memory::model::{Model, at_most, bounded},
};

impl Model {
    pub(super) fn pools(&self, now: i64) -> Pools {
        let mut pools = Pools { now_us: now, ..Pools::default() };
        for (name, row) in self.books.pools.iter().take(at_most(POOLS_BOUND)) {
            match self.books.damaged_pools.get(name) {
                None => pools.rows.push(row.clone()),
                Some(defect) => pools.unreadable.push((name.clone(), defect.to_string())),
            }
        }
        pools
    }

    pub(super) fn pool(&self, name: &str) -> Result<Option<PoolRow>> {
        match self.books.damaged_pools.get(name) {
            Some(defect) if self.books.pools.contains_key(name) => Err(StoreError::Unreadable(defect.clone())),
            _ => Ok(self.books.pools.get(name).cloned()),
        }
    }

    pub(super) fn create_pool(&mut self, now: i64, new: &NewPool, request: Option<Uuid>) -> Result<Option<PoolRow>> {
        if self.is_known(request) {
            return self.pool(&new.name);
        }
        if self.books.pools.contains_key(&new.name) {
            return Ok(None);
        }
        let row = PoolRow {
            name: new.name.clone(),
            spec: new.spec.clone(),
            override_: None,
            deleting: false,
            version: 1,
            created_at_us: now,
            updated_at_us: now,
        };
        self.books.pools.insert(new.name.clone(), row);
        self.remember(now, request, None);
        self.pool(&new.name)
    }

    pub(super) fn update_pool(
        &mut self,
        now: i64,
        (name, version): (&str, i64),
        change: &PoolChange,
        audit: &Audit,
        request: Option<Uuid>,
    ) -> Result<PoolUpdate> {
        let before = self.pool(name)?;
        if !self.is_known(request) {
            match (before, self.books.pools.get_mut(name)) {
                (Some(before), _) if before.version != version => return Ok(PoolUpdate::Moved),
                (_, None) => return Ok(PoolUpdate::Missing),
                (_, Some(row)) => {
                    match change {
                        PoolChange::Spec(spec) => row.spec.clone_from(spec),
                        PoolChange::Override(value) => row.override_.clone_from(value),
                    }
                    row.version += 1;
                    row.updated_at_us = now;
                }
            }
            self.audit.push((now, audit.clone()));
            self.remember(now, request, None);
        }
        Ok(self.pool(name)?.map_or(PoolUpdate::Missing, PoolUpdate::Changed))
    }

    pub(super) fn delete_pool(
        &mut self,
        now: i64,
        (name, drain): (&str, bool),
        audit: &Audit,
        request: Option<Uuid>,
    ) -> Result<PoolDeletion> {
        if self.is_known(request) {
            return self.still_draining(name);
        }
        let nodes = self.nodes_of(name);
        let Some(row) = self.books.pools.get_mut(name) else { return Ok(PoolDeletion::Missing) };
        if nodes > 0 && !drain {
            return Ok(PoolDeletion::NotEmpty(nodes));
        }
        if nodes == 0 {
            self.remove(name);
            self.audit.push((now, audit.clone()));
        } else if !row.deleting {
            row.deleting = true;
            row.version += 1;
            row.updated_at_us = now;
            self.audit.push((now, audit.clone()));
        }
        self.remember(now, request, None);
        self.still_draining(name)
    }

    /// What has become of a pool that was deleted, or marked, before. One of its name that is not being deleted was made since.
    fn still_draining(&self, name: &str) -> Result<PoolDeletion> {
        let row = self.pool(name)?.filter(|row| row.deleting);
        Ok(row.map_or(PoolDeletion::Gone, PoolDeletion::Draining))
    }

    /// How many nodes of a pool are not gone.
    fn nodes_of(&self, pool: &str) -> i64 {
        bounded(self.live_nodes().filter(|kept| kept.row.node.pool == pool).count())
    }

    pub(super) fn remove_emptied(&mut self, name: &str) {
        if self.books.pools.get(name).is_some_and(|row| row.deleting) && self.nodes_of(name) == 0 {
            self.remove(name);
        }
    }

    fn remove(&mut self, name: &str) {
        self.books.pools.remove(name);
        self.books.statuses.remove(name);
        self.books.damaged_pools.remove(name);
    }

    pub(super) fn pool_statuses(&self, names: &[String]) -> Vec<PoolStatusRow> {
        let wanted = |status: &&PoolStatusRow| names.is_empty() || names.contains(&status.pool);
        self.books.statuses.values().filter(wanted).take(at_most(POOLS_BOUND)).cloned().collect()
    }

    /// Writes the status of a pool that there is.
    pub(super) fn write_status(&mut self, status: PoolStatusRow) {
        if self.books.pools.contains_key(&status.pool) {
            self.books.statuses.insert(status.pool.clone(), status);
        }
    }
}
