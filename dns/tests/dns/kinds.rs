//! What the server does not understand, it passes on: all types of records, options of EDNS, and kinds of names.

mod belongs;
mod beside;
mod cases;
mod messages;
mod mutations;
mod names;
mod options;
mod passed_on;
mod raw;
mod records;
mod types;
mod upstream;
mod zone;
