//! A batch that the database refuses for its data is bisected, so that one bad item fails alone (R8).

use crate::{Result, StoreError};

/// Runs a batch. When the database refuses it for its data, the batch is halved until the items that it refuses stand alone;
/// `refuse` decides what each of these becomes. Answers come in the order of the batch.
///
/// Each part is a transaction of its own. A transient error after a part has been stored therefore becomes
/// [`StoreError::UnknownOutcome`]: the caller repeats the whole batch, and the repeat finds what is there.
pub(crate) fn bisect<T, R>(
    batch: &[T],
    mut run: impl FnMut(&[T]) -> Result<Vec<R>>,
    mut refuse: impl FnMut(&T, StoreError) -> Result<R>,
) -> Result<Vec<R>> {
    let mut answers = Vec::with_capacity(batch.len());
    // What is left to do, the next part last. At most log2 of the batch's length parts wait here.
    let mut parts = vec![batch];
    while let Some(part) = parts.pop() {
        match (run(part), part) {
            (Ok(mut done), _) => answers.append(&mut done),
            (Err(error @ StoreError::Data { .. }), [item]) => answers.push(refuse(item, error)?),
            (Err(StoreError::Data { .. }), _) if part.len() > 1 => {
                let (first, second) = part.split_at(part.len() / 2);
                parts.push(second);
                parts.push(first);
            }
            (Err(error), _) if error.is_transient() && !answers.is_empty() => {
                return Err(StoreError::UnknownOutcome(error.to_string()));
            }
            (Err(error), _) => return Err(error),
        }
    }
    Ok(answers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused() -> StoreError {
        StoreError::Data { sqlstate: "22021".into(), message: "no".into() }
    }

    /// Refuses every part with a number that `bad` names, and counts the tries.
    fn run(batch: &[u32], bad: &[u32]) -> (Vec<Option<u32>>, usize) {
        let mut tries = 0;
        let answers = bisect(
            batch,
            |part| {
                tries += 1;
                match part.iter().any(|number| bad.contains(number)) {
                    true => Err(refused()),
                    false => Ok(part.iter().map(|number| Some(*number)).collect()),
                }
            },
            |_, _| Ok(None),
        );
        (answers.unwrap(), tries)
    }

    #[test]
    fn r8_a_good_batch_is_one_try() {
        assert_eq!(run(&[1, 2, 3], &[]), (vec![Some(1), Some(2), Some(3)], 1));
        assert_eq!(run(&[], &[]), (vec![], 1));
    }

    #[test]
    fn r8_every_bad_item_fails_alone_and_the_order_is_kept() {
        let batch: Vec<u32> = (0..100).collect();
        for bad in [vec![0], vec![99], vec![17], vec![3, 4, 50], batch.clone()] {
            let expected: Vec<Option<u32>> =
                batch.iter().map(|number| (!bad.contains(number)).then_some(*number)).collect();
            assert_eq!(run(&batch, &bad).0, expected);
        }
    }

    #[test]
    fn r8_one_bad_item_costs_two_tries_a_halving() {
        let batch: Vec<u32> = (0..512).collect();
        assert!(run(&batch, &[300]).1 <= 1 + 2 * 9);
    }

    #[test]
    fn r8_an_error_after_a_part_was_stored_leaves_the_outcome_unknown() {
        let mut tries = 0;
        let answers = bisect(
            &[1, 2],
            |part| {
                tries += 1;
                match tries {
                    1 => Err(refused()),
                    2 => Ok(part.to_vec()),
                    _ => Err(StoreError::Timeout("late".into())),
                }
            },
            |item, _| Ok(*item),
        );
        assert!(matches!(answers, Err(StoreError::UnknownOutcome(_))), "{answers:?}");
    }

    #[test]
    fn r10_an_error_that_is_not_about_data_is_not_bisected() {
        let mut tries = 0;
        let answers = bisect(
            &[1, 2],
            |_| {
                tries += 1;
                Err::<Vec<i32>, _>(StoreError::Timeout("late".into()))
            },
            |item, _| Ok(*item),
        );
        assert!(matches!((answers, tries), (Err(StoreError::Timeout(_)), 1)));
    }
}
