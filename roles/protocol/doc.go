// Package protocol holds the words and types of the /v1 API between agents, operators and the control plane, and the
// evidence that agents sign. It does no I/O; package client makes the calls.
//
// Bodies are decoded by exact case and by the presence rules of the contract;
// unknown members are ignored and duplicate ones refused.
package protocol
