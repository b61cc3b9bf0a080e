// Package wire turns the vocabulary into the messages of the host stream and
// back. It is strict: what package vnet would not have written is an error, so
// that nothing half-readable reaches a dataplane or the store.
package wire

import (
	"errors"
	"fmt"
	"math"
	"net/netip"

	"replug/directory/vnet"
)

// ErrMessage is wrapped by every error of this package.
var ErrMessage = errors.New("message is not readable")

// A reader collects the first error of many conversions.
type reader struct{ err error }

func (r *reader) fail(field string, err error) {
	if r.err == nil {
		r.err = fmt.Errorf("%s: %w: %w", field, ErrMessage, err)
	}
}

func (r *reader) vni(field string, v uint32) vnet.VNI {
	if !vnet.VNI(v).Valid() {
		r.fail(field, vnet.ErrVNI)
	}
	return vnet.VNI(v)
}

func (r *reader) ca(field, s string) vnet.CA {
	ca, err := vnet.ParseCA(s)
	if err != nil {
		r.fail(field, err)
	}
	return ca
}

func (r *reader) pa(field, s string) vnet.PA {
	pa, err := vnet.ParsePA(s)
	if err != nil {
		r.fail(field, err)
	}
	return pa
}

func (r *reader) mac(field string, b []byte) vnet.MAC {
	if len(b) != len(vnet.MAC{}) {
		r.fail(field, fmt.Errorf("%d bytes: %w", len(b), vnet.ErrMAC))
		return vnet.MAC{}
	}
	if m := vnet.MAC(b); m == (vnet.MAC{}) || m[0]&1 == 1 {
		r.fail(field, fmt.Errorf("%s: %w", m, vnet.ErrMAC))
	}
	return vnet.MAC(b)
}

// epoch refuses 0: no place has it, so it is a message that lacks the field.
func (r *reader) epoch(field string, e uint64) vnet.Epoch {
	if e == 0 {
		r.fail(field, vnet.ErrEpoch)
	}
	return vnet.Epoch(e)
}

func (r *reader) u16(field string, v uint32) uint16 {
	if v > math.MaxUint16 {
		r.fail(field, fmt.Errorf("%d is more than 65535", v))
	}
	return uint16(v)
}

// addr reads an address, "" as none.
func (r *reader) addr(field, s string) netip.Addr {
	if s == "" {
		return netip.Addr{}
	}
	a, err := netip.ParseAddr(s)
	if err != nil {
		r.fail(field, err)
	}
	return a
}

func (r *reader) prefix(field, s string) netip.Prefix {
	if s == "" {
		return netip.Prefix{}
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		r.fail(field, err)
	}
	return p
}

func (r *reader) addrs(field string, in []string) []netip.Addr {
	return each(in, func(s string) netip.Addr {
		if s == "" {
			r.fail(field, errors.New("an empty address"))
		}
		return r.addr(field, s)
	})
}

// each keeps nil: absent and empty are the same on the wire.
func each[A, B any](in []A, f func(A) B) []B {
	if len(in) == 0 {
		return nil
	}
	out := make([]B, len(in))
	for i := range in {
		out[i] = f(in[i])
	}
	return out
}

func text(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

func prefixText(p netip.Prefix) string {
	if !p.IsValid() {
		return ""
	}
	return p.String()
}
