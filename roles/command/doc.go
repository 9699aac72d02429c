// Package command is the kit of all roles: errors with exit codes and hints,
// flags with their environment variables, the logger, tables and live views,
// shell completion, systemd's watchdog, and the run of one command line.
//
// It promises that an error is printed with the next thing to type, that an
// environment variable which is empty counts as not set, that nothing which
// was received from another machine reaches a terminal or a log as a control
// character, and that the environment of the process is read and never
// changed. It knows nothing of fleets: roles bring their own words.
package command
