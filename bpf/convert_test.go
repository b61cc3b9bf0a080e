package bpf

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/cilium/ebpf/btf"
)

var (
	u8  = &btf.Int{Name: "u8", Size: 1}
	u16 = &btf.Int{Name: "u16", Size: 2}
	u32 = &btf.Int{Name: "u32", Size: 4}
	s16 = &btf.Int{Name: "s16", Size: 2, Encoding: btf.Signed}
	s32 = &btf.Int{Name: "s32", Size: 4, Encoding: btf.Signed}
	mac = &btf.Array{Index: u32, Type: u8, Nelems: 6}
)

// structOf lays fields out one behind the other.
func structOf(t *testing.T, fields ...any) *btf.Struct {
	t.Helper()
	s := &btf.Struct{Name: "row"}
	for i := 0; i < len(fields); i += 2 {
		of := fields[i+1].(btf.Type)
		s.Members = append(s.Members, btf.Member{Name: fields[i].(string), Type: of, Offset: btf.Bits(s.Size * 8)})
		size, err := btf.Sizeof(of)
		if err != nil {
			t.Fatal(err)
		}
		s.Size += uint32(size)
	}
	return s
}

// Fields go where their names are, numbers become wider or narrower, what is new
// is zero, what has gone is left, and padding isn't a field.
func TestRowsConvertByName(t *testing.T) {
	was := structOf(t, "vni", u32, "pad", u16, "mtu", u16, "offset", s16, "mac", mac, "gone", u32, "wide", u32,
		"addrs", &btf.Array{Index: u32, Type: u16, Nelems: 2})
	is := structOf(t, "mac", mac, "offset", s32, "mtu", u32, "fresh", u16, "wide", u8, "pad", u32,
		"addrs", &btf.Array{Index: u32, Type: u32, Nelems: 3}, "vni", &btf.Typedef{Name: "__u32", Type: u32})
	m, err := movesBetween(was, is)
	if err != nil {
		t.Fatal(err)
	}
	old := []byte{0xef, 0xcd, 0xab, 0x89, 0x77, 0x77, 0xdc, 0x05, 0xfe, 0xff, 2, 0x52, 0x1a, 0x2b, 0x3c, 0x4d, 9, 9, 9, 9, 0xc8, 0, 0, 0, 0x11, 0x22, 0x33, 0x44}
	got, want := make([]byte, is.Size), []byte{2, 0x52, 0x1a, 0x2b, 0x3c, 0x4d, 0xfe, 0xff, 0xff, 0xff, 0xdc, 0x05, 0, 0, 0, 0, 0xc8, 0, 0, 0, 0,
		0x11, 0x22, 0, 0, 0x33, 0x44, 0, 0, 0, 0, 0, 0, 0xef, 0xcd, 0xab, 0x89}
	if err := m.apply(old, got); err != nil || !bytes.Equal(got, want) {
		t.Errorf("got  %x, %v\nwant %x", got, err, want)
	}
	old[21] = 1 // wide is 456 now
	if err := m.apply(old, make([]byte, is.Size)); !errors.Is(err, errLayout) || !strings.Contains(err.Error(), "wide") {
		t.Errorf("a number that doesn't fit: got %v, want errLayout with its name", err)
	}
	if _, err := movesBetween(structOf(t, "mac", u32), structOf(t, "mac", mac)); !errors.Is(err, errLayout) {
		t.Errorf("a number that became an array: got %v, want errLayout", err)
	}
}

func TestSameLayout(t *testing.T) {
	base := structOf(t, "vni", u32, "mac", mac)
	for name, c := range map[string]struct {
		other btf.Type
		want  bool
	}{
		"itself":          {structOf(t, "vni", u32, "mac", mac), true},
		"behind typedefs": {&btf.Typedef{Name: "t", Type: &btf.Const{Type: structOf(t, "vni", &btf.Typedef{Name: "__u32", Type: u32}, "mac", mac)}}, true},
		"another name":    {structOf(t, "vid", u32, "mac", mac), false},
		"another order":   {structOf(t, "mac", mac, "vni", u32), false},
		"a sign":          {structOf(t, "vni", s32, "mac", mac), false},
		"fewer elements":  {structOf(t, "vni", u32, "mac", &btf.Array{Index: u32, Type: u8, Nelems: 5}), false},
		"no type":         {nil, false},
	} {
		if got := sameLayout(base, c.other); got != c.want {
			t.Errorf("%s: got %v, want %v", name, got, c.want)
		}
	}
}

func TestRecords(t *testing.T) {
	r := record{structOf(t, "vni", u32, "list", &btf.Array{Index: u32, Type: u16, Nelems: 3}), make([]byte, 10)}
	r.field("vni").set(0x89abcdef)
	r.field("list").at(2).set(0x1234)
	if want := []byte{0xef, 0xcd, 0xab, 0x89, 0, 0, 0, 0, 0x34, 0x12}; !bytes.Equal(r.b, want) {
		t.Errorf("wrote %x, want %x", r.b, want)
	}
	if r.field("vni").uint() != 0x89abcdef || r.field("list").len() != 3 {
		t.Errorf("read back %#x and %d elements", r.field("vni").uint(), r.field("list").len())
	}
	for name, none := range map[string]record{"no field": r.field("mac"), "behind the end": r.field("list").at(3), "of a number": r.field("vni").field("x")} {
		if none.set(7); none.uint() != 0 || none.len() != 0 {
			t.Errorf("%s: got %+v, want an empty record", name, none)
		}
	}
}
