package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ErrForeign says that somebody else's filter sits where the datapath's would.
var ErrForeign = errors.New("another program's filter is in the way")

// Where the datapath's filters sit, and what they are called: `tc filter show
// dev DEV ingress` lists them. Filters that tc numbers by itself come after.
const (
	filterPriority = 100
	filterHandle   = 0x5eb7
	filterPrefix   = "replug_"
	ownQdisc       = "qdisc" // in a note: the clsact qdisc is ours too
)

// A filter is how the datapath hooks into a device of a kernel without tcx: a
// direct-action filter of a clsact qdisc. It holds its program, so nothing is
// pinned for it; that it is there is noted by an empty directory on the bpffs,
// which is as short-lived as the filter: both end with the machine.
type filter struct {
	note    string // the directory
	ifindex int
	parent  uint32 // ingress or egress of the device
}

// newFilter is the filter called name on a device, there or not.
func newFilter(dir, name string, ifindex int) filter {
	f := filter{filepath.Join(filterDir(dir), name+"@"+strconv.Itoa(ifindex)), ifindex, netlink.HANDLE_MIN_INGRESS}
	if name == imdsPin {
		f.parent = netlink.HANDLE_MIN_EGRESS
	}
	return f
}

// filters lists what has a note.
func filters(dir string) (map[string]filter, error) {
	notes, err := os.ReadDir(filterDir(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list filters: %w", err)
	}
	all := map[string]filter{}
	for _, n := range notes {
		name, device, _ := strings.Cut(n.Name(), "@")
		if ifindex, err := strconv.Atoi(device); err == nil {
			all[name] = newFilter(dir, name, ifindex)
		}
	}
	return all, nil
}

// attach makes the filter run prog, in one step if it is there already. The
// note comes first: a filter without one would outlive [Remove].
func (f filter) attach(name string, prog *ebpf.Program) error {
	if err := os.MkdirAll(f.note, 0o700); err != nil {
		return fmt.Errorf("note filter %s: %w", name, err)
	}
	err := netlink.QdiscAdd(f.qdisc())
	if err == nil {
		err = os.MkdirAll(filepath.Join(f.note, ownQdisc), 0o700)
	}
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add a clsact qdisc to device %d: %w", f.ifindex, err)
	}
	have, err := f.find()
	if err != nil {
		return err
	}
	if have != nil && !strings.HasPrefix(have.Name, filterPrefix) {
		return fmt.Errorf("device %d, priority %d: %w: %q", f.ifindex, filterPriority, ErrForeign, have.Name)
	}
	want := f.classifier()
	want.Fd, want.Name, want.DirectAction = prog.FD(), filterPrefix+name, true
	if err := netlink.FilterReplace(want); err != nil {
		return fmt.Errorf("attach %s to device %d by a clsact filter: %w", name, f.ifindex, err)
	}
	return nil
}

// program returns what the filter runs; 0: it isn't there.
func (f filter) program() (ebpf.ProgramID, error) {
	have, err := f.find()
	if err != nil || have == nil || !strings.HasPrefix(have.Name, filterPrefix) {
		return 0, err
	}
	return ebpf.ProgramID(have.Id), nil
}

// detach takes the filter away, and the qdisc if it was made for it and nobody
// else uses it. It is no error if they are gone, or the device is.
func (f filter) detach() error {
	have, err := f.find()
	if err != nil {
		return err
	}
	if have != nil && strings.HasPrefix(have.Name, filterPrefix) {
		if err := gone(netlink.FilterDel(f.classifier())); err != nil {
			return fmt.Errorf("take the filter off device %d: %w", f.ifindex, err)
		}
	}
	if _, err := os.Stat(filepath.Join(f.note, ownQdisc)); err == nil {
		if err := f.removeQdisc(); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(f.note); err != nil {
		return fmt.Errorf("forget the filter of device %d: %w", f.ifindex, err)
	}
	return nil
}

func (f filter) removeQdisc() error {
	for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
		others, err := netlink.FilterList(f.device(), parent)
		if gone(err) != nil {
			return fmt.Errorf("list filters of device %d: %w", f.ifindex, err)
		}
		if len(others) > 0 {
			return nil
		}
	}
	if err := gone(netlink.QdiscDel(f.qdisc())); err != nil {
		return fmt.Errorf("remove the clsact qdisc of device %d: %w", f.ifindex, err)
	}
	return nil
}

// find returns what sits in the filter's place: its own, another one, or nil.
func (f filter) find() (*netlink.BpfFilter, error) {
	all, err := netlink.FilterList(f.device(), f.parent)
	if gone(err) != nil {
		return nil, fmt.Errorf("list filters of device %d: %w", f.ifindex, err)
	}
	for _, have := range all {
		a := have.Attrs()
		if a.Priority != filterPriority || a.Handle != filterHandle {
			continue
		}
		if b, ok := have.(*netlink.BpfFilter); ok {
			return b, nil
		}
		return &netlink.BpfFilter{FilterAttrs: *a, Name: have.Type()}, nil
	}
	return nil, nil
}

func (f filter) classifier() *netlink.BpfFilter {
	return &netlink.BpfFilter{Fd: -1, FilterAttrs: netlink.FilterAttrs{
		LinkIndex: f.ifindex, Parent: f.parent, Handle: filterHandle, Priority: filterPriority, Protocol: unix.ETH_P_ALL,
	}}
}

func (f filter) qdisc() netlink.Qdisc {
	return &netlink.GenericQdisc{QdiscType: "clsact", QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: f.ifindex, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}}
}

func (f filter) device() netlink.Link {
	return &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: f.ifindex}}
}

// gone leaves errors that don't mean that the device, its qdisc or the filter
// isn't there any more.
func gone(err error) error {
	for _, missing := range []error{unix.ENODEV, unix.ENOENT, unix.EINVAL} {
		if errors.Is(err, missing) {
			return nil
		}
	}
	return err
}

func filterDir(dir string) string { return filepath.Join(dir, "filters") }
