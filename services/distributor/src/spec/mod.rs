//! Task specs: what a submission must keep ([`strict`]), and what can be made of one that another release stored
//! ([`foreign`], [`stored`]). Fields are found by [`walk`]; [`drill`] makes of this build one of another release.

mod drill;
mod foreign;
mod stored;
mod strict;
mod walk;

pub use foreign::read_foreign;
pub(crate) use foreign::{clean, cleaned, limit_size, shown};
pub(crate) use stored::{labels_of, retry_policy};
pub(crate) use strict::{Spec, labels, read};
