package client

import (
	"context"
	"net/url"
	"time"

	"nixfleet/pki"
	"nixfleet/roles/protocol"
)

// Channel are the calls about one channel.
type Channel struct {
	client *Client
	path   string
}

// Channel gives the calls about one channel.
func (c *Client) Channel(name string) Channel {
	return Channel{c, "/v1/channels/" + url.PathEscape(name)}
}

// Read asks what the channel declares, and whether it is frozen.
func (c Channel) Read(ctx context.Context) (*protocol.ChannelResponse, error) {
	return view[protocol.ChannelResponse](ctx, c.client, c.path)
}

// Freeze lets nothing new start on the channel until a time.
func (c Channel) Freeze(ctx context.Context, until time.Time, reason string) error {
	return c.client.tell(ctx, c.path+"/freeze", &protocol.FreezeRequest{Until: pki.At(until), Reason: reason})
}

// Thaw ends the freeze of the channel.
func (c Channel) Thaw(ctx context.Context, reason string) error {
	return c.client.tell(ctx, c.path+"/thaw", &protocol.HoldRequest{Reason: reason})
}
