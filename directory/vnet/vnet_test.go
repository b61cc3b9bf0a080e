package vnet

import (
	"encoding/json"
	"errors"
	"net/netip"
	"testing"
)

func TestParse(t *testing.T) {
	for _, c := range []struct {
		name string
		err  error
		got  func() error
	}{
		{"largest VNI", nil, func() error { _, err := ParseVNI("16777215"); return err }},
		{"VNI one too large", ErrVNI, func() error { _, err := ParseVNI("16777216"); return err }},
		{"VNI zero", ErrVNI, func() error { _, err := ParseVNI("0"); return err }},
		{"CA", nil, func() error { _, err := ParseCA("10.17.34.51"); return err }},
		{"CA multicast", ErrCA, func() error { _, err := ParseCA("224.0.0.5"); return err }},
		{"CA broadcast", ErrCA, func() error { _, err := ParseCA("255.255.255.255"); return err }},
		{"CA with zone", ErrCA, func() error { _, err := ParseCA("fe80::7%eth0"); return err }},
		{"PA unspecified", ErrPA, func() error { _, err := ParsePA("0.0.0.0"); return err }},
		{"MAC group", ErrMAC, func() error { _, err := ParseMAC("03:52:0a:1b:2c:3d"); return err }},
		{"MAC", nil, func() error { _, err := ParseMAC("02:52:0a:1b:2c:3d"); return err }},
		{"moniker", nil, func() error { _, err := ParseMoniker("blue-7"); return err }},
		{"moniker upper case", ErrMoniker, func() error { _, err := ParseMoniker("Blue"); return err }},
		{"epoch", nil, func() error { _, err := ParseEpoch("3.281474976710655"); return err }},
		{"epoch counter too large", ErrEpoch, func() error { _, err := ParseEpoch("3.281474976710656"); return err }},
	} {
		if err := c.got(); !errors.Is(err, c.err) {
			t.Errorf("%s: got %v, want %v", c.name, err, c.err)
		}
	}
}

// Invariant 2 rests on this order.
func TestEpochOrder(t *testing.T) {
	old, restored := NewEpoch(3, 90), NewEpoch(4, 7)
	if !(restored > old && old.Next() > old) {
		t.Errorf("order: %v, %v, %v", old, old.Next(), restored)
	}
	if e, err := ParseEpoch(restored.String()); err != nil || e != restored {
		t.Errorf("ParseEpoch(%s) = %v, %v", restored, e, err)
	}
}

func TestStatusNewer(t *testing.T) {
	base := Status{Epoch: NewEpoch(2, 5), Session: 7, Seq: 9}
	for _, c := range []struct {
		name string
		s    Status
		want bool
	}{
		{"duplicate", base, false},
		{"later in the session", Status{Epoch: base.Epoch, Session: 7, Seq: 10}, true},
		{"late from an older session", Status{Epoch: base.Epoch, Session: 6, Seq: 900}, false},
		{"older epoch from a newer session", Status{Epoch: NewEpoch(2, 4), Session: 8, Seq: 1}, false},
		{"higher era", Status{Epoch: NewEpoch(3, 1), Session: 1, Seq: 1}, true},
	} {
		if got := c.s.Newer(&base); got != c.want {
			t.Errorf("%s: got %v, want %v", c.name, got, c.want)
		}
	}
}

func TestIntentJSON(t *testing.T) {
	in := Intent{Port: "p-17", ID: 23, MAC: PortMAC(0x1a2b3c4d), PA: PA{netip.MustParseAddr("100.64.9.23")},
		Current: Place{Epoch: NewEpoch(2, 5), Network: "red", VNI: 0xabcdef,
			Addrs: []Addr{{CA: CA{netip.MustParseAddr("10.17.34.51")}, Bits: 24, Gateway: netip.MustParseAddr("10.17.34.1")}}}}
	b, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	var out Intent
	if err := json.Unmarshal(b, &out); err != nil {
		t.Fatal(err)
	}
	if out.MAC != in.MAC || out.PA != in.PA || out.Current.Epoch != in.Current.Epoch || !out.Current.Has(in.Current.Addrs[0].CA) {
		t.Errorf("read back %+v from %s", out, b)
	}
	if m := in.MAC.String(); m != "02:52:1a:2b:3c:4d" {
		t.Errorf("PortMAC = %s", m)
	}
}

func TestEUI64(t *testing.T) {
	mac := MAC{0x02, 0x52, 0x1a, 0x2b, 0x3c, 0x4d}
	for _, c := range []struct{ prefix, want string }{
		{"fd9a:8b7c:6d5e:4f31:77::/64", "fd9a:8b7c:6d5e:4f31:52:1aff:fe2b:3c4d"},
		{"fd9a:8b7c:6d5e:4f31::/63", "invalid IP"},
		{"10.17.34.0/24", "invalid IP"},
	} {
		got, ok := mac.EUI64(netip.MustParsePrefix(c.prefix))
		if got.String() != c.want || ok != got.IsValid() {
			t.Errorf("%s: got %s, %t; want %s", c.prefix, got, ok, c.want)
		}
	}
}

// What a host's control takes, the guest takes, and the other way round: one check.
func TestFileCheck(t *testing.T) {
	for path, ok := range map[string]bool{"/etc/motd": true, "/a b/c.d": true, "": false, "/": false, "etc/motd": false, "/etc/": false, "/etc/../x": false,
		"//etc": false, "/etc/./x": false, "/C:/x": false, `/..\x`: false, "/a\x00": false} {
		if err := (&File{Path: path}).Check(); (err == nil) != ok || err != nil && !errors.Is(err, ErrFile) {
			t.Errorf("%q: %v", path, err)
		}
	}
	for mode, ok := range map[uint32]bool{0: true, 0o600: true, 0o777: true, 0o1644: false, 0o2755: false, 0o4755: false, 0o100644: false} {
		if err := (&File{Path: "/etc/motd", Mode: mode}).Check(); (err == nil) != ok || err != nil && !errors.Is(err, ErrFile) {
			t.Errorf("mode %o: %v", mode, err)
		}
	}
}
