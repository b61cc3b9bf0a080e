package qmp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
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

// Unplug takes a device out of the machine and returns when the guest has let go
// of it. One that isn't there is no error.
func (c *Client) Unplug(ctx context.Context, id string) error {
	for len(c.events) > 0 {
		<-c.events // of before
	}
	err := c.Execute(ctx, "device_del", map[string]string{"id": id}, nil)
	var no *Error
	switch {
	case errors.As(err, &no) && no.Class == "DeviceNotFound":
		return nil
	case err != nil && !(no != nil && strings.Contains(no.Desc, "in the process of unplug")):
		return err
	}
	for {
		select {
		case e, open := <-c.events:
			if !open {
				return c.Err()
			}
			var gone struct {
				Device string `json:"device"`
			}
			if e.Name == "DEVICE_DELETED" && json.Unmarshal(e.Data, &gone) == nil && gone.Device == id {
				return nil
			}
		case <-ctx.Done():
			return fmt.Errorf("the guest does not let go of %s: %w", id, ctx.Err())
		}
	}
}

// Plug puts a device into the machine, as device_add describes it. One that is
// there already is no error.
func (c *Client) Plug(ctx context.Context, device map[string]any) error {
	err := c.Execute(ctx, "device_add", device, nil)
	var no *Error
	if errors.As(err, &no) && strings.Contains(no.Desc, "Duplicate") {
		return nil
	}
	return err
}

// A Filter is what a NIC takes in.
type Filter struct {
	Promiscuous bool     `json:"promiscuous"`
	Unicast     []string `json:"unicast-table"`
	Multicast   []string `json:"multicast-table"`
}

// Filter returns the receive filter of a NIC, named by its id. Not every adapter has one.
func (c *Client) Filter(ctx context.Context, id string) (Filter, error) {
	var all []Filter
	err := c.Execute(ctx, "query-rx-filter", map[string]string{"name": id}, &all)
	if err == nil && len(all) != 1 {
		err = fmt.Errorf("query-rx-filter: %d filters of %s: %w", len(all), id, ErrProtocol)
	}
	if err != nil {
		return Filter{}, err
	}
	return all[0], nil
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

// Save writes the machine's state, memory and devices, into its disks as a
// snapshot of that name, in place of one that has it.
func (c *Client) Save(ctx context.Context, name string) error { return c.human(ctx, "savevm "+name) }

// Drop removes what [Client.Save] wrote. One that isn't there is no error.
func (c *Client) Drop(ctx context.Context, name string) error {
	err := c.human(ctx, "delvm "+name)
	if err != nil && strings.Contains(err.Error(), "does not exist") {
		return nil
	}
	return err
}

// human runs a command of the monitor for people, which says nothing when all is well.
func (c *Client) human(ctx context.Context, line string) error {
	var said string
	err := c.Execute(ctx, "human-monitor-command", map[string]string{"command-line": line}, &said)
	if said = strings.TrimSpace(said); err == nil && said != "" {
		return &Error{Command: line, Class: "GenericError", Desc: said}
	}
	return err
}

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
