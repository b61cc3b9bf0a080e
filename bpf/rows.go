package bpf

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"reflect"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"
)

// rowsAtOnce is how many rows one system call moves.
const rowsAtOnce = 4096

// A table is a map with the types of its rows; nil for a map without any (a ring).
type table struct {
	*ebpf.Map
	key, value btf.Type
}

// openTable opens a pinned map, or returns false if there is none. It is the
// caller's to close.
func openTable(dir, name string) (table, bool, error) {
	m, err := ebpf.LoadPinnedMap(filepath.Join(dir, name), nil)
	if errors.Is(err, fs.ErrNotExist) {
		return table{}, false, nil
	}
	if err != nil {
		return table{}, false, fmt.Errorf("open pinned map %s: %w", name, err)
	}
	t := table{Map: m}
	if t.key, t.value, err = typesOf(m); err != nil {
		return table{}, false, errors.Join(fmt.Errorf("types of pinned map %s: %w", name, err), m.Close())
	}
	return t, true, nil
}

// mapInfo is the beginning of struct bpf_map_info (linux/bpf.h): cilium/ebpf
// doesn't tell the ids of the types.
type mapInfo struct {
	_               [64]byte
	btf, key, value uint32
	_               uint32
}

// typesOf asks the kernel what a map's rows are made of. Maps without types
// have none.
func typesOf(m *ebpf.Map) (key, value btf.Type, err error) {
	var info mapInfo
	attr := struct {
		fd, size uint32
		info     unsafe.Pointer
	}{uint32(m.FD()), uint32(unsafe.Sizeof(info)), unsafe.Pointer(&info)}
	_, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_OBJ_GET_INFO_BY_FD, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	if errno != 0 {
		return nil, nil, errno
	}
	if info.btf == 0 || info.key == 0 {
		return nil, nil, nil
	}
	h, err := btf.NewHandleFromID(btf.ID(info.btf))
	if err != nil {
		return nil, nil, err
	}
	defer h.Close()
	spec, err := h.Spec(nil)
	if err != nil {
		return nil, nil, err
	}
	key, err1 := spec.TypeByID(btf.TypeID(info.key))
	value, err2 := spec.TypeByID(btf.TypeID(info.value))
	return key, value, errors.Join(err1, err2)
}

// perCPU reports whether a row has a value for each CPU.
func (t table) perCPU() bool {
	switch t.Type() {
	case ebpf.PerCPUArray, ebpf.PerCPUHash, ebpf.LRUCPUHash:
		return true
	}
	return false
}

// array reports whether every row is always there.
func (t table) array() bool { return t.Type() == ebpf.Array || t.Type() == ebpf.PerCPUArray }

// A row is a key with its values: one, or one a CPU.
type row struct {
	key    []byte
	values [][]byte
}

// each calls f with the rows that aren't all zero, some at a time. What f gets
// is good until it returns.
func (t table) each(f func([]row) error) error {
	if t.Type() == ebpf.Hash || t.Type() == ebpf.LRUHash {
		return t.eachBatch(f)
	}
	cpus, err := t.width()
	if err != nil {
		return err
	}
	keys, values := newSlots(int(t.KeySize()), 1), newSlots(int(t.ValueSize()), cpus)
	out := values.first()
	if t.perCPU() {
		out = values.slice
	}
	it := t.Iterate()
	for it.Next(keys.first(), out) {
		r := row{keys.at(0), values.all()}
		if t.array() && r.zero() {
			continue
		}
		if err := f([]row{r}); err != nil {
			return err
		}
	}
	return it.Err()
}

// eachBatch reads a hash table bucket by bucket, which works while others write.
func (t table) eachBatch(f func([]row) error) error {
	var cursor ebpf.MapBatchCursor
	keys, values := newSlots(int(t.KeySize()), rowsAtOnce), newSlots(int(t.ValueSize()), rowsAtOnce)
	for {
		n, err := t.BatchLookup(&cursor, keys.slice, values.slice, nil)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return err
		}
		rows := make([]row, n)
		for i := range rows {
			rows[i] = row{keys.at(i), [][]byte{values.at(i)}}
		}
		if ferr := f(rows); ferr != nil || err != nil {
			return ferr
		}
	}
}

// put writes rows, over those that are there.
func (t table) put(rows []row) error {
	if len(rows) == 0 {
		return nil
	}
	if t.Type() == ebpf.Hash || t.Type() == ebpf.LRUHash {
		keys, values := newSlots(int(t.KeySize()), len(rows)), newSlots(int(t.ValueSize()), len(rows))
		for i, r := range rows {
			copy(keys.at(i), r.key)
			copy(values.at(i), r.values[0])
		}
		_, err := t.BatchUpdate(keys.slice, values.slice, nil)
		return full(err)
	}
	for _, r := range rows {
		keys, values := newSlots(int(t.KeySize()), 1), newSlots(int(t.ValueSize()), len(r.values))
		copy(keys.at(0), r.key)
		for cpu, v := range r.values {
			copy(values.at(cpu), v)
		}
		in := values.first()
		if t.perCPU() {
			in = values.slice
		}
		if err := t.Put(keys.first(), in); err != nil {
			return full(err)
		}
	}
	return nil
}

// putNew writes rows that aren't there, and of flows that began since a time of [Now],
// when the others were copied, the one that began first: who saw only the answer took it
// for the first packet, and knows nothing of the service that the flow is to, nor who
// began it.
func (t table) putNew(rows []row, copied time.Duration) error {
	for _, r := range rows {
		key, value, have := newSlots(len(r.key), 1), newSlots(len(r.values[0]), 1), newSlots(len(r.values[0]), 1)
		copy(key.at(0), r.key)
		copy(value.at(0), r.values[0])
		err := t.Update(key.first(), value.first(), ebpf.UpdateNoExist)
		if errors.Is(err, ebpf.ErrKeyExist) {
			err = t.Lookup(key.first(), have.first())
			began, known := t.began(value), t.began(have)
			if err == nil && began > copied && (known <= copied || began < known) {
				err = t.Put(key.first(), value.first())
			}
		}
		if err := ignoreMissing(err); err != nil {
			return err
		}
	}
	return nil
}

func (t table) began(flow slots) time.Duration {
	return time.Duration(record{t.value, flow.at(0)}.number("began"))
}

// add adds to counters. A frame that is counted in the same microsecond on
// another CPU may be lost from the count; the frame isn't.
func (t table) add(rows []row) error {
	for _, r := range rows {
		key, sum := newSlots(len(r.key), 1), newSlots(int(t.ValueSize()), len(r.values))
		copy(key.at(0), r.key)
		if err := t.Lookup(key.first(), sum.slice); err != nil {
			return err
		}
		for cpu, v := range r.values {
			s := sum.at(cpu)
			for i := 0; i+8 <= len(v); i += 8 {
				store64(s[i:i+8], load64(s[i:i+8], false)+load64(v[i:i+8], false))
			}
		}
		if err := t.Put(key.first(), sum.slice); err != nil {
			return err
		}
	}
	return nil
}

// width is the number of values of a row.
func (t table) width() (int, error) {
	if !t.perCPU() {
		return 1, nil
	}
	return ebpf.PossibleCPU()
}

func (r row) zero() bool {
	for _, v := range r.values {
		if len(bytes.TrimLeft(v, "\x00")) > 0 {
			return false
		}
	}
	return true
}

func (r row) clone() row {
	c := row{key: bytes.Clone(r.key)}
	for _, v := range r.values {
		c.values = append(c.values, bytes.Clone(v))
	}
	return c
}

// slots are n byte arrays of a size that is known only now, in the form that
// cilium/ebpf takes without copying.
type slots struct {
	slice any
	v     reflect.Value
	size  int
}

func newSlots(size, n int) slots {
	v := reflect.MakeSlice(reflect.SliceOf(reflect.ArrayOf(size, reflect.TypeFor[byte]())), n, n)
	return slots{v.Interface(), v, size}
}

func (s slots) at(i int) []byte { return s.v.Index(i).Slice(0, s.size).Bytes() }

func (s slots) first() any { return s.v.Index(0).Addr().Interface() }

func (s slots) all() [][]byte {
	all := make([][]byte, s.v.Len())
	for i := range all {
		all[i] = s.at(i)
	}
	return all
}
