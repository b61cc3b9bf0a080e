package vnet

import "time"

// A Status is what a host has made true of one port. Of two, the one with the
// higher (Epoch, Session, Seq) wins; the other is late or a duplicate.
type Status struct {
	Port     string        `json:"port"`
	Host     string        `json:"host"`
	Epoch    Epoch         `json:"epoch"`   // of the place that Phase speaks of
	Session  uint64        `json:"session"` // grows with each start of the host agent
	Seq      uint64        `json:"seq"`     // grows with each report of a session
	Phase    StatusPhase   `json:"phase"`
	Power    Power         `json:"power,omitempty"`
	Error    string        `json:"error,omitempty"` // why, when Phase is Refused or Failed; says what next
	Rung     string        `json:"rung,omitempty"`  // trigger that worked: "none", "bounce 20ms", ...
	Hops     []Hop         `json:"hops,omitempty"`  // when each step ended, by the host's clock
	Blackout time.Duration `json:"blackout,omitempty"`
	Guest    *GuestReport  `json:"guest,omitempty"`
}

// Newer reports whether s is to replace old.
func (s *Status) Newer(old *Status) bool {
	if s.Epoch != old.Epoch {
		return s.Epoch > old.Epoch
	}
	if s.Session != old.Session {
		return s.Session > old.Session
	}
	return s.Seq > old.Seq
}

// A StatusPhase is how far a host is with one epoch of a port.
type StatusPhase uint8

// Phases, in order. Stored and sent: append, never renumber.
const (
	StatusPrepared  StatusPhase = 1 // Next is staged: nothing has changed yet
	StatusRefused   StatusPhase = 2 // Next can't be staged: nothing has changed, Error says why
	StatusFlipped   StatusPhase = 3 // the port's row holds the epoch
	StatusLeased    StatusPhase = 4 // the guest was seen on a CA of the epoch
	StatusPublished StatusPhase = 5 // IMDS serves the epoch's document
	StatusConfirmed StatusPhase = 6 // the guest agent reported success for the epoch
	StatusFailed    StatusPhase = 7 // flipped, but the ladder ended without proof; it goes on with back-off
	StatusGone      StatusPhase = 8 // port and machine are down and removed
)

// String returns the phase's word in logs and the API.
func (p StatusPhase) String() string {
	names := [...]string{"", "prepared", "refused", "flipped", "leased", "published", "confirmed", "failed", "gone"}
	if int(p) < len(names) && p > 0 {
		return names[p]
	}
	return "unknown"
}

// A Hop is one step with the time it ended.
type Hop struct {
	Name string    `json:"name"` // stage, link_down, flip, link_up, dhcp, seen, publish, report
	At   time.Time `json:"at"`
}

// HopReset is the hop of a guest that was reset in mid-swap. It boots, and asks for
// its address when it is up: the swap waits for that as for any boot.
const HopReset = "guest_reset"

// A GuestReport is what the guest agent said. Partial and final are different
// messages: a partial report never counts as the success of a final document.
type GuestReport struct {
	Epoch    Epoch     `json:"epoch"`           // of the document it speaks of
	Kind     string    `json:"kind"`            // [ReportPartial] or [ReportFinal]
	OK       bool      `json:"ok"`              // the settings are applied
	Error    string    `json:"error,omitempty"` // of settings, or, if OK, of commands that ran after them
	BootID   string    `json:"boot_id"`
	Hostname string    `json:"hostname"`
	Addrs    []string  `json:"addrs"` // the guest's own view, "10.0.0.20/24"
	MAC      string    `json:"mac"`
	At       time.Time `json:"at"` // when the host received it
}

// The two kinds of a guest's report.
const (
	ReportPartial = "partial"
	ReportFinal   = "final"
)
