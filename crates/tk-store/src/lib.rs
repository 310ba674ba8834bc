//! The Store trait, the closure walk and the copy engine of tk-store.
