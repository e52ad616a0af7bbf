//! Single cases: what each rule of a rollout does, one by one.
