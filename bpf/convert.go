package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/cilium/ebpf/btf"
)

// errLayout says that a value of one type doesn't become one of another by itself.
var errLayout = errors.New("no way from the old layout to the new one")

// A move carries one field of an old value into a new one. Bytes are in the
// order of this machine, which is little-endian (the object is bpfel).
type move struct {
	from, to  int // offsets
	was, is   int // sizes; equal unless it is a number
	signed    bool
	fieldName string
}

// moves are what makes a new value of an old one. Fields that only the new type
// has stay zero; those that only the old one has are left behind.
type moves []move

// movesBetween matches fields by their names. What has a name in both, but can't
// be carried over, is an error that wraps errLayout.
func movesBetween(old, new btf.Type) (moves, error) {
	var all moves
	err := all.match("", old, new, 0, 0)
	return all, err
}

func (all *moves) match(name string, old, new btf.Type, from, to int) error {
	old, new = btf.UnderlyingType(old), btf.UnderlyingType(new)
	switch is := new.(type) {
	case *btf.Struct:
		if was, ok := old.(*btf.Struct); ok {
			return all.matchFields(name, was, is, from, to)
		}
	case *btf.Array:
		if was, ok := old.(*btf.Array); ok {
			return all.matchElements(name, was, is, from, to)
		}
	case *btf.Union:
		was, ok := old.(*btf.Union)
		if ok && sameLayout(was, is) {
			all.add(move{from, to, int(was.Size), int(is.Size), false, name})
			return nil
		}
	default:
		was, signed, ok1 := number(old)
		size, _, ok2 := number(new)
		if ok1 && ok2 {
			all.add(move{from, to, was, size, signed, name})
			return nil
		}
	}
	return fmt.Errorf("field %q was %v, is %v: %w", name, old, new, errLayout)
}

func (all *moves) matchFields(name string, was, is *btf.Struct, from, to int) error {
	var errs []error
	for _, m := range is.Members {
		for _, o := range was.Members {
			if o.Name != m.Name || padding(m.Name) {
				continue
			}
			inner := name + "." + m.Name
			if o.BitfieldSize != 0 || m.BitfieldSize != 0 {
				return fmt.Errorf("field %q is a bit field: %w", inner, errLayout)
			}
			errs = append(errs, all.match(inner, o.Type, m.Type, from+int(o.Offset.Bytes()), to+int(m.Offset.Bytes())))
		}
	}
	return errors.Join(errs...)
}

// matchElements carries over as many elements as both have.
func (all *moves) matchElements(name string, was, is *btf.Array, from, to int) error {
	oldSize, err1 := btf.Sizeof(was.Type)
	newSize, err2 := btf.Sizeof(is.Type)
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	for i := range int(min(was.Nelems, is.Nelems)) {
		if err := all.match(fmt.Sprintf("%s[%d]", name, i), was.Type, is.Type, from+i*oldSize, to+i*newSize); err != nil {
			return err
		}
	}
	return nil
}

// add merges neighbours, so that most values are one move.
func (all *moves) add(m move) {
	if n := len(*all); n > 0 && m.was == m.is {
		last := &(*all)[n-1]
		if last.was == last.is && last.from+last.was == m.from && last.to+last.is == m.to {
			last.was += m.was
			last.is += m.is
			return
		}
	}
	*all = append(*all, m)
}

// apply fills new, which is zero, from old.
func (all moves) apply(old, new []byte) error {
	for _, m := range all {
		was, is := old[m.from:m.from+m.was], new[m.to:m.to+m.is]
		if m.was == m.is {
			copy(is, was)
			continue
		}
		v := load64(was, m.signed)
		store64(is, v)
		if load64(is, m.signed) != v {
			return fmt.Errorf("field %q holds %d, which needs more than the %d bytes it has now: %w", m.fieldName, v, m.is, errLayout)
		}
	}
	return nil
}

// number returns the bytes of an integer or an enum.
func number(t btf.Type) (size int, signed, ok bool) {
	switch t := t.(type) {
	case *btf.Int:
		return int(t.Size), t.Encoding == btf.Signed, true
	case *btf.Enum:
		return int(t.Size), t.Signed, true
	}
	return 0, false, false
}

// sameLayout reports whether a value of one type is a value of the other: the
// same fields by the same names in the same places.
func sameLayout(a, b btf.Type) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	a, b = btf.UnderlyingType(a), btf.UnderlyingType(b)
	switch a := a.(type) {
	case *btf.Struct:
		b, ok := b.(*btf.Struct)
		return ok && a.Size == b.Size && sameMembers(a.Members, b.Members)
	case *btf.Union:
		b, ok := b.(*btf.Union)
		return ok && a.Size == b.Size && sameMembers(a.Members, b.Members)
	case *btf.Array:
		b, ok := b.(*btf.Array)
		return ok && a.Nelems == b.Nelems && sameLayout(a.Type, b.Type)
	}
	sizeA, signedA, okA := number(a)
	sizeB, signedB, okB := number(b)
	return okA && okB && sizeA == sizeB && signedA == signedB
}

func sameMembers(a, b []btf.Member) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i].Name != b[i].Name || a[i].Offset != b[i].Offset || a[i].BitfieldSize != b[i].BitfieldSize || !sameLayout(a[i].Type, b[i].Type) {
			return false
		}
	}
	return true
}

// padding reports whether a field only fills a gap: vnet.h names them pad, pad2.
func padding(name string) bool {
	return len(name) >= 3 && name[:3] == "pad" && (len(name) == 3 || name[3] >= '0' && name[3] <= '9')
}

// A record is a value with its type: what a change of contract reads and writes.
type record struct {
	t btf.Type
	b []byte
}

// field returns a field of a struct, or an empty record if there is none.
func (r record) field(name string) record {
	s, ok := btf.UnderlyingType(r.t).(*btf.Struct)
	if !ok {
		return record{}
	}
	for _, m := range s.Members {
		if m.Name == name {
			return r.part(m.Type, int(m.Offset.Bytes()))
		}
	}
	return record{}
}

// at returns an element of an array, or an empty record.
func (r record) at(i int) record {
	a, ok := btf.UnderlyingType(r.t).(*btf.Array)
	if !ok || i < 0 || i >= int(a.Nelems) {
		return record{}
	}
	size, err := btf.Sizeof(a.Type)
	if err != nil {
		return record{}
	}
	return r.part(a.Type, i*size)
}

func (r record) part(t btf.Type, offset int) record {
	size, err := btf.Sizeof(t)
	if err != nil || offset+size > len(r.b) {
		return record{}
	}
	return record{t, r.b[offset : offset+size]}
}

// len is the number of elements of an array.
func (r record) len() int {
	a, ok := btf.UnderlyingType(r.t).(*btf.Array)
	if !ok {
		return 0
	}
	return int(a.Nelems)
}

func (r record) uint() uint64 { return load64(r.b, false) }

// number is a field that is one.
func (r record) number(name string) uint64 { return r.field(name).uint() }

func (r record) set(v uint64) { store64(r.b, v) }

// load64 reads a number of 1 to 8 bytes.
func load64(b []byte, signed bool) uint64 {
	var whole [8]byte
	n := copy(whole[:], b)
	v := binary.LittleEndian.Uint64(whole[:])
	if signed && n > 0 && n < 8 && b[n-1]&0x80 != 0 {
		v |= math.MaxUint64 << (8 * n)
	}
	return v
}

func store64(b []byte, v uint64) {
	var whole [8]byte
	binary.LittleEndian.PutUint64(whole[:], v)
	copy(b, whole[:])
}
