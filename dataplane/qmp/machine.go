package qmp

import (
	"context"
	"errors"
)

// SetLink moves the link of a NIC, or of the netdev behind it, named by its id.
// QEMU reports success also on adapters that ignore it: only the guest's traffic
// proves that it noticed.
func (c *Client) SetLink(ctx context.Context, id string, up bool) error {
	return c.Execute(ctx, "set_link", struct {
		Name string `json:"name"`
		Up   bool   `json:"up"`
	}{id, up}, nil)
}

// Status returns the machine's run state: "running", "paused", "shutdown", ...
func (c *Client) Status(ctx context.Context) (string, error) {
	var s struct {
		Status string `json:"status"`
	}
	err := c.Execute(ctx, "query-status", nil, &s)
	return s.Status, err
}

// Powerdown presses the machine's power button; the guest may ignore it.
func (c *Client) Powerdown(ctx context.Context) error {
	return c.Execute(ctx, "system_powerdown", nil, nil)
}

// Stop halts the virtual CPUs.
func (c *Client) Stop(ctx context.Context) error { return c.Execute(ctx, "stop", nil, nil) }

// Cont lets the virtual CPUs run.
func (c *Client) Cont(ctx context.Context) error { return c.Execute(ctx, "cont", nil, nil) }

// Quit ends the QEMU process, and returns when the monitor is gone.
func (c *Client) Quit(ctx context.Context) error {
	// QEMU may be gone before its answer is through.
	if err := c.Execute(ctx, "quit", nil, nil); err != nil && !errors.Is(err, ErrClosed) {
		return err
	}
	select {
	case <-c.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
