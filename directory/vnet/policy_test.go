package vnet

import (
	"errors"
	"testing"
)

func TestProtocolReadsWhatItPrints(t *testing.T) {
	for _, p := range []Protocol{AnyProtocol, ICMP, TCP, UDP, ICMPv6, SCTP, 47} {
		if got, err := ParseProtocol(p.String()); err != nil || got != p {
			t.Errorf("%s: got %d, %v, want %d", p, got, err, p)
		}
	}
	for _, s := range []string{"0", "256", "-6", "TCP", "gre"} {
		if p, err := ParseProtocol(s); !errors.Is(err, ErrProtocol) {
			t.Errorf("%q: got %v, %v, want %v", s, p, err, ErrProtocol)
		}
	}
}

// RFC 6059: the gateway of each network has an address of its own.
func TestGateway6(t *testing.T) {
	if got, want := VNI(0xabcdef).Gateway6().String(), "fe80::5250:4c00:ab:cdef"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
