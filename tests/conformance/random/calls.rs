//! The calls that a run makes, drawn at random, and the reads that compare everything.

use super::{answers::*, *};

impl Run {
    pub(super) fn step(&self) {
        match self.draw(100) {
            0..=17 => self.submit(),
            18..=39 => self.claim(),
            40..=49 => self.complete(),
            50..=57 => self.requeue(),
            58..=63 => self.heartbeat(),
            64..=66 => self.cancel(),
            67..=70 => self.retry(),
            71..=72 => self.open_session(),
            73..=76 => self.change_session(),
            77..=79 => self.sweep(),
            80..=82 => self.own(),
            83..=84 => self.change_queue(),
            85..=86 => self.delete_queue(),
            87 => self.change_routes(),
            88..=92 => self.pass_time(),
            93 => self.trim(),
            _ => self.read(),
        }
        self.model.check_invariants();
    }

    fn draft(&self) -> Draft {
        let mut task = new_task(0);
        let number = self.drafts.borrow().len() as u128 + 1;
        task.envelope.id = TaskId(Uuid::from_u128(number << 96 | u128::from(self.rng.borrow_mut().random::<u64>())));
        task.envelope.tenant = self.pick(&TENANTS).into();
        task.envelope.queue = self.some_queue().into();
        task.envelope.rank = self.draw(3) as i32 - 1;
        task.envelope.timeout_ms = self.once_in(3).then_some(1000);
        task.envelope.min_reader = if self.once_in(20) { 2 } else { 1 };
        task.request = self.key();
        task.expire_after = self.once_in(4).then(|| self.span());
        let draft = Draft { task, not_before: self.once_in(4).then(|| self.span()), old_routes: self.once_in(15) };
        self.drafts.borrow_mut().push(draft.clone());
        draft
    }

    fn submit(&self) {
        let mut batch: Vec<Draft> = (0..1 + self.draw(3)).map(|_| self.draft()).collect();
        let repeat = self.once_in(4);
        if repeat {
            // Of some the first try was stored.
            let earlier = self.drafts.borrow().clone();
            let mut earlier = self.pick(&earlier);
            // A key that was dropped and given to another task since is none of this one's.
            let spent = |key: Uuid| self.model.request(key).expect("the model") != Some(earlier.task.envelope.id);
            if earlier.task.request.is_some_and(spent) {
                earlier.task.request = None;
            }
            batch.retain(|draft| draft.task.envelope.id != earlier.task.envelope.id);
            batch.insert(0, earlier);
        }
        // Which of two with the same key in one batch comes first is the store's choice.
        let mut keys = BTreeSet::new();
        batch.retain(|draft| draft.task.request.is_none_or(|key| keys.insert(key)));
        self.both(format!("submit {repeat} {batch:?}"), |world| {
            let batch: Vec<NewTask> = batch.iter().map(|draft| draft.for_world(world)).collect();
            Ok(world.submit(&batch, repeat)?.iter().map(submitted).collect::<Vec<_>>())
        });
    }

    fn claim(&self) {
        let sessions = self.sessions.borrow().clone();
        let mut batch: Vec<Match> = self
            .some_tasks(4)
            .into_iter()
            .map(|task| Match {
                task,
                session: sessions[sessions.len() - 1 - self.draw(sessions.len().min(4))].id,
                token: self.token(),
                queue: self.once_in(10).then(|| self.some_queue()),
                old_epoch: self.once_in(12),
                old_generation: self.once_in(12),
            })
            .collect();
        let earlier = self.matches.borrow().clone();
        if !earlier.is_empty() && self.once_in(4) {
            let again = self.pick(&earlier);
            batch.retain(|one| one.task != again.task);
            batch.push(again);
        }
        self.matches.borrow_mut().extend(batch.clone());
        self.both(format!("claim {batch:?}"), |world| {
            let claims: Vec<Claim> = batch.iter().map(|one| self.claim_for(world, one)).collect();
            Ok(world.claim(&claims)?.iter().map(claimed).collect::<Vec<_>>())
        });
    }

    fn claim_for(&self, world: &World, one: &Match) -> Claim {
        let row = world.task(one.task).expect("reading");
        let queue = match (one.queue, row) {
            (Some(queue), _) => queue.to_owned(),
            (None, Some(row)) => row.envelope.queue,
            (None, None) => "default".to_owned(),
        };
        let epoch = world.queue(&queue).expect("reading").map_or(0, |row| row.epoch);
        let sessions = self.sessions.borrow();
        let worker = sessions.iter().find(|worker| worker.id == one.session).expect("a session");
        Claim {
            task: one.task,
            queue,
            epoch: epoch - i64::from(one.old_epoch),
            session: one.session,
            generation: worker.generation - i64::from(one.old_generation),
            token: one.token,
        }
    }

    fn complete(&self) {
        let batch: Vec<Completion> = self
            .some_tasks(3)
            .into_iter()
            .map(|task| {
                let state = self.model.task(task).expect("the model").map(|row| row.state);
                let said = match (state, self.draw(3)) {
                    (Some(State::Cancelling), 0) => State::Cancelled,
                    (_, 1) => State::Failed,
                    _ => State::Succeeded,
                };
                let mut completion = completion(self.lease(task), said);
                completion.outcome.exit_code = Some(self.draw(100) as i32);
                completion.outcome.started_at_us = self.once_in(2).then_some(17);
                completion
            })
            .collect();
        self.both(format!("complete {batch:?}"), |world| world.complete(&batch));
    }

    fn requeue(&self) {
        let batch: Vec<Requeue> = self
            .some_tasks(3)
            .into_iter()
            .map(|task| {
                let wait = if self.once_in(2) { Duration::ZERO } else { self.span() };
                let mut requeue = requeue(self.lease(task), wait);
                requeue.outcome =
                    outcome(self.pick(&[OutcomeKind::Failed, OutcomeKind::Lost, OutcomeKind::Unsupported]));
                (requeue.failures, requeue.losses) = (self.draw(9) as i32, self.draw(9) as i32);
                requeue
            })
            .collect();
        self.both(format!("requeue {batch:?}"), |world| {
            Ok(world.requeue(&batch)?.iter().map(requeued).collect::<Vec<_>>())
        });
    }

    fn heartbeat(&self) {
        let sessions = self.sessions.borrow();
        let mut batch: Vec<Heartbeat> = Vec::new();
        for _ in 0..1 + self.draw(2) {
            let worker = self.pick(&sessions);
            if batch.iter().any(|beat| beat.session == worker.id) {
                continue;
            }
            let mut held = self.model.held_by(worker.id).expect("the model");
            // Whether a start is still noted while the attempt is being stopped is the store's choice.
            held.retain(|dispatch| dispatch.state != State::Cancelling && self.once_in(2));
            let accepted = held.iter().map(|dispatch| (dispatch.lease, Some(17)));
            let generation = worker.generation - i64::from(self.once_in(10));
            batch.push(Heartbeat { session: worker.id, generation, accepted: accepted.collect() });
        }
        self.both(format!("heartbeat {batch:?}"), |world| {
            let mut results = world.heartbeat(&batch)?;
            results.iter_mut().for_each(|result| result.cancelling.sort());
            Ok(results)
        });
    }

    fn cancel(&self) {
        for task in self.some_tasks(1) {
            let key = self.fresh_key();
            for _ in 0..1 + self.draw(2) {
                self.both(format!("cancel {task} {key:?}"), |world| {
                    Ok(match world.cancel(task, "a reason", key)? {
                        CancelResult::Done(row) => format!("done {}", row_text(&row)),
                        CancelResult::Finished(row) => format!("finished {}", row_text(&row)),
                        CancelResult::TooNew(defect) => format!("too new: {}", defect.column),
                        CancelResult::NotFound => "not found".into(),
                    })
                });
            }
        }
    }

    fn retry(&self) {
        for task in self.some_tasks(1) {
            let key = self.fresh_key();
            for _ in 0..1 + self.draw(2) {
                self.both(format!("retry {task} {key:?}"), |world| {
                    let answer = world.retry(task, key)?;
                    let value = match answer.value {
                        RetryResult::Done(row) => format!("done {}", row_text(&row)),
                        RetryResult::WrongState(row) => format!("wrong state {}", row_text(&row)),
                        RetryResult::QueueClosed(queue) => format!("closed {queue}"),
                        RetryResult::TooNew(defect) => format!("too new: {}", defect.column),
                        RetryResult::NotFound => "not found".into(),
                    };
                    Ok((value, answer.repeated))
                });
            }
        }
    }

    pub(super) fn open_session(&self) {
        let mut session = new_session(self.span());
        session.id = SessionId(Uuid::from_u128(self.rng.borrow_mut().random()));
        self.both(format!("open session {}", session.id), |world| Ok(session_text(&world.open_session(&session)?)));
        self.sessions.borrow_mut().push(Worker { id: session.id, generation: 1 });
    }

    fn change_session(&self) {
        let index = self.draw(self.sessions.borrow().len());
        let Worker { id, generation } = self.sessions.borrow()[index];
        let generation = generation - i64::from(self.once_in(6));
        match self.draw(4) {
            0 => {
                let which = self.once_in(2).then_some(generation);
                self.both(format!("close session {id} {which:?}"), |world| world.close_session(id, which));
            }
            _ => {
                let resumed = self.both(format!("resume session {id} {generation}"), |world| {
                    Ok(match world.resume_session(id, generation, "elsewhere")? {
                        Resumed::Yes { session, held } => {
                            Some((session.generation, session_text(&session), dispatches(&held)))
                        }
                        Resumed::Gone => None,
                    })
                });
                if let Some((generation, ..)) = resumed {
                    self.sessions.borrow_mut()[index].generation = generation;
                }
            }
        }
    }

    fn sweep(&self) {
        self.both("expire and wake".into(), |world| {
            let mut expired = world.expire(1000)?;
            expired.sort();
            let mut woken: Vec<_> = world.wake(1000)?.into_iter().map(|(queue, waiting)| (queue, waiting.id)).collect();
            woken.sort();
            Ok((expired, woken))
        });
        self.both("reap and look for orphans".into(), |world| {
            let mut reaped = world.reap_sessions(1000)?;
            reaped.sort();
            let mut orphans: Vec<String> = world.orphans(1000)?.iter().map(held_text).collect();
            orphans.sort();
            Ok((reaped, orphans))
        });
        if self.once_in(2) {
            let mut orphans = self.model.orphans(1000).expect("the model");
            orphans.sort_by_key(|row| row.lease);
            let batch: Vec<Requeue> = orphans.iter().map(|row| requeue(row.lease, Duration::ZERO)).collect();
            self.both("requeue the orphans".into(), |world| {
                Ok(world.requeue(&batch)?.iter().map(requeued).collect::<Vec<_>>())
            });
        }
    }

    fn own(&self) {
        let (owner, queue) = (self.pick(&self.members), self.some_queue());
        let ttl_ms = self.span().as_millis() as i64;
        match self.draw(4) {
            0 => {
                self.both(format!("release {queue}"), |world| world.release_queues(owner, &[queue.into()]));
            }
            1 => {
                self.both(format!("renew {queue}"), |world| {
                    let epoch = world.queue(queue)?.map_or(0, |row| row.epoch);
                    world.renew_queues(owner, &[(queue.into(), epoch)], ttl_ms)
                });
            }
            _ => {
                self.both(format!("own {queue}"), |world| {
                    let before = world.queue(queue)?.map_or(0, |row| row.epoch);
                    // Which number an epoch has is the store's to say, and whether an owner takes or renews a lease of its own
                    // that has ended and that nobody else has taken.
                    Ok(world.own_queue(queue, owner, "here", ttl_ms)?.map(|epoch| epoch >= before))
                });
            }
        }
    }

    fn change_queue(&self) {
        let queue = self.some_queue();
        let (lifted, pause_for, timeout) = (self.once_in(2), self.once_in(2).then(|| self.span()), self.once_in(3));
        self.both(format!("change {queue} {lifted} {pause_for:?} {timeout}"), |world| {
            let pause = (!lifted).then(|| ("a test".into(), pause_for.map(|span| world.now().after(span).0)));
            let change = QueueChange {
                pause: Some(pause),
                default_timeout_ms: timeout.then_some(Some(1)),
                ..QueueChange::default()
            };
            Ok(world.update_queue(queue, &change, &audit(), None)?.map(|row| queue_text(&row)))
        });
    }

    fn delete_queue(&self) {
        let queue = self.some_queue();
        let mode = match self.draw(4) {
            0 => DeleteMode::Refuse,
            1 => DeleteMode::Drain,
            _ => DeleteMode::Move(self.some_queue().into()),
        };
        self.both(format!("delete {queue} {mode:?}"), |world| {
            Ok(match world.delete_queue(queue, &mode, None)? {
                DeleteResult::Draining(row) => format!("draining {}", queue_text(&row)),
                other => format!("{other:?}"),
            })
        });
        self.both("drain".into(), |world| {
            let mut drained = world.drain_queues(1000)?;
            drained.sort();
            Ok(drained)
        });
        if self.once_in(2) {
            self.both(format!("create {queue}"), |world| {
                Ok(world.create_queue(&queue_row(queue), None)?.map(|row| (row.draining, row.pause, row.name)))
            });
        }
    }

    fn change_routes(&self) {
        let name = self.pick(&["default", "one", "two"]);
        match self.once_in(3) {
            true => drop(self.both(format!("delete route {name}"), |world| world.delete_route(name, None))),
            false => {
                let route = Route {
                    name: name.into(),
                    order: 5,
                    executor: "process".into(),
                    resource_class: String::new(),
                    tenant: String::new(),
                    labels: Default::default(),
                    queue: self.some_queue().into(),
                };
                self.both(format!("set {route:?}"), |world| world.set_route(&route, None));
            }
        }
    }

    fn pass_time(&self) {
        let span = hours(1 + self.draw(2) as u64);
        self.history.borrow_mut().push(format!("pass {span:?}"));
        for world in [&self.model, &self.other] {
            world.serve(span);
        }
        self.both("lift pauses".into(), |world| {
            let mut lifted = world.lift_pauses()?;
            lifted.sort();
            Ok(lifted)
        });
    }

    fn trim(&self) {
        let keep = hours(20) - Duration::from_secs(1800);
        self.both("trim".into(), |world| {
            let next = world.trim_requests(keep, None, 1000)?;
            Ok((next, world.trim_sessions(keep, 1000)?, world.trim_attempts(None, 1000)?))
        });
    }

    fn read(&self) {
        let tasks = self.some_tasks(4);
        let leases: Vec<LeaseRef> = tasks.iter().map(|task| self.lease(*task)).collect();
        self.both(format!("read {tasks:?}"), |world| {
            let waits = |task: &TaskId| world.position(*task).map(|position| position.is_some());
            let waits = tasks.iter().map(waits).collect::<Result<Vec<_>, _>>()?;
            let mut held: Vec<String> = world.held_rows(&leases)?.iter().map(held_text).collect();
            held.sort();
            let quarantined = world.is_quarantined(tasks.first().copied().unwrap_or(TaskId(Uuid::nil())))?;
            Ok((waits, held, quarantined))
        });
        let filter = ListFilter {
            tenant: self.once_in(2).then(|| self.pick(&TENANTS).into()),
            queue: self.once_in(2).then(|| self.some_queue().into()),
            states: match self.once_in(2) {
                true => vec![],
                false => vec![State::Queued, State::Failed, State::Running],
            },
        };
        let (below, limit) = (self.some_tasks(1).pop().filter(|_| self.once_in(2)), 1 + self.draw(9) as i64);
        self.both(format!("list {filter:?} {below:?} {limit}"), |world| {
            let page = world.list(&filter, below, limit)?;
            Ok(page.rows.iter().map(row_text).collect::<Vec<_>>())
        });
        let key = self.pick(&self.keys);
        self.both(format!("look up {key}"), |world| world.request(key));
    }
}

impl Run {
    pub(super) fn compare_everything(&self) {
        self.other.check_invariants();
        self.both("all tasks".into(), |world| {
            let page = world.list(&ListFilter::default(), None, 10_000)?;
            Ok(page.rows.iter().map(row_text).collect::<Vec<_>>())
        });
        let ids: Vec<TaskId> = self.drafts.borrow().iter().map(|draft| draft.task.envelope.id).collect();
        self.both("all attempts".into(), |world| {
            let mut all = Vec::new();
            for id in &ids {
                for attempt in world.attempts(*id)? {
                    let dispatched = attempt.dispatched_at_us.is_some();
                    all.push((
                        *id,
                        attempt.attempt,
                        attempt.orchestrator,
                        dispatched,
                        format!("{:?}", attempt.outcome),
                    ));
                }
            }
            Ok(all)
        });
        self.both("all sessions".into(), |world| {
            let mut sessions: Vec<String> = world.sessions(1000)?.iter().map(session_text).collect();
            sessions.sort();
            Ok(sessions)
        });
        self.both("all queues".into(), |world| Ok(world.queues()?.iter().map(queue_text).collect::<Vec<_>>()));
        self.both("all counts".into(), |world| {
            let mut counts: Vec<_> = world
                .counts(&[])?
                .into_iter()
                .map(|of| (of.name, of.queued, of.scheduled, of.held, of.oldest_ready_at_us.is_some()))
                .collect();
            counts.sort();
            Ok(counts)
        });
        self.both("all owners".into(), |world| {
            let owned = world.owners()?.into_iter().filter_map(|row| Some((row.queue, row.owner?)));
            Ok(owned.collect::<Vec<_>>())
        });
        self.both("all routes".into(), |world| {
            let mut routes = world.routing()?.routes;
            routes.sort_by(|a, b| a.name.cmp(&b.name));
            Ok(routes)
        });
        for queue in QUEUES {
            let lanes = self.both(format!("lanes of {queue}"), |world| world.lanes(queue, None, 1000));
            for lane in lanes {
                self.compare_lane(queue, &lane);
            }
        }
    }

    fn compare_lane(&self, queue: &str, lane: &LaneKey) {
        let start = (millrace_core::time::Timestamp::MIN, TaskId(Uuid::nil()));
        self.both(format!("lane {lane:?} of {queue}"), |world| {
            let page = world.lane_page(queue, lane, start, None, 1000)?;
            let rows = page.rows.into_iter();
            let rows = rows.map(|row| (row.id, row.tenant, row.rank, row.expires_at_us.is_some(), row.min_reader));
            // In which order those stand that one call has queued is the store's choice.
            let mut rows: Vec<_> = rows.collect();
            rows.sort();
            Ok((rows, page.exhausted))
        });
    }
}
