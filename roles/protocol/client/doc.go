// Package client calls the /v1 API of a control plane, for agents and operators.
//
// Answers are decoded as package protocol decodes them. Each answer and each wait is bounded, and no redirect is
// followed.
package client
