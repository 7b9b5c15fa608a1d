//! Two links against each other in a simulated world ([`world`]), and one alone, step by step.

mod alone;
mod simulation;
mod world;
