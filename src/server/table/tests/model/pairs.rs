//! Pairs the grants of the table with those of the model, which are numbered in another order.

use std::collections::HashMap;

use super::*;

/// The pairs of grants. One sweep may grant several keys in any order, so the numbers differ.
#[derive(Default)]
pub(super) struct Pairs {
    tokens: Vec<(Token, Token)>,
    by_model: HashMap<u64, Token>,
}

impl Pairs {
    pub(super) fn assert_same(&mut self, real: &Grant, model: &Grant) {
        assert_eq!(real.lease, model.lease);
        let number = model.token.fence().unwrap().get();
        let known = self.by_model.entry(number).or_insert_with(|| {
            assert!(self.tokens.iter().all(|(token, _)| *token != real.token), "a token twice");
            self.tokens.push((real.token.clone(), model.token.clone()));
            real.token.clone()
        });
        assert_eq!(*known, real.token);
    }

    pub(super) fn assert_outcome(&mut self, real: &Result<Grant, Status>, model: &Result<Grant, Status>) {
        match (real, model) {
            (Ok(real), Ok(model)) => self.assert_same(real, model),
            _ => assert_eq!(real, model),
        }
    }

    pub(super) fn assert_acquire(&mut self, real: &AcquireOutcome, model: &AcquireOutcome) {
        match (real, model) {
            (AcquireOutcome::Granted(real), AcquireOutcome::Granted(model)) => self.assert_same(real, model),
            _ => assert_eq!(real, model),
        }
    }

    pub(super) fn assert_enqueue(&mut self, real: &EnqueueOutcome, model: &EnqueueOutcome) {
        match (real, model) {
            (EnqueueOutcome::Acquired(real), EnqueueOutcome::Acquired(model)) => {
                self.assert_same(real, model)
            }
            _ => assert_eq!(real, model),
        }
    }

    /// Returns one of the latest grants.
    pub(super) fn pick(&self, back: usize) -> (Token, u64) {
        let unknown = Token::mint(Fence::new(0), 1);
        let at = self.tokens.len().checked_sub(back + 1);
        at.map_or((unknown, 0), |at| {
            let (real, model) = &self.tokens[at];
            (real.clone(), model.fence().unwrap().get())
        })
    }
}
