// Package store is what survives a restart of the control plane: one SQLite
// file.
//
// It offers domain operations and no SQL. Writes go through one writer that
// commits in groups with synchronous=FULL: an operation that has returned is on
// disk, and one that fails leaves the others of its group alone. Readers run
// beside it. Rows that a person inserts with the sqlite3 shell are seen by the
// next reader.
package store
