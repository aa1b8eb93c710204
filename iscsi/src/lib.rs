//! The iSCSI target: empty until the issue that builds it. The room is there so that the arrows are law from the first day.
