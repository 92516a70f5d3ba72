//! What the method is compared with, on the same stream and scored the same way.

mod hoeffding;
mod mlp;
mod reservoir;

pub use hoeffding::Hoeffding;
pub use mlp::Mlp;
pub use reservoir::Reservoir;
