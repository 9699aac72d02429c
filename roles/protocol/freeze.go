package protocol

import "nixfleet/pki"

// ChannelFreeze says until when nothing new starts on a channel, and who said so.
type ChannelFreeze struct {
	Until  pki.Timestamp `json:"until" shape:"R"`
	At     pki.Timestamp `json:"at" shape:"R"`
	By     string        `json:"by" shape:"R"`
	Reason string        `json:"reason" shape:"R"`
}

// FreezeRequest is the body of POST /v1/channels/{name}/freeze.
type FreezeRequest struct {
	Until  pki.Timestamp `json:"until" shape:"R"`
	Reason string        `json:"reason" shape:"D"`
}
