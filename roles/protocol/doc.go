// Package protocol is the /v1 API between agents, operators and the control
// plane: its wire types, the evidence that agents sign, and the client.
//
// Bodies are decoded by exact case and by the presence rules of the contract;
// unknown members are ignored and duplicate ones refused.
package protocol
