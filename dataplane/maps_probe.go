package dataplane

import (
	"errors"
	"os"

	"github.com/cilium/ebpf"

	"replug/bpf"
)

// datapathProbes ask whether this kernel takes the datapath.
func datapathProbes(release string) []probe {
	return []probe{
		{"every program of the datapath loads", true, "no frame is carried", "a kernel of Linux 6.1 or newer; if this is one, report what it says",
			func() (State, string) {
				if state, why := tried(bpf.HavePrograms()); state != Have {
					return state, release + ": " + why + lockdown(os.ReadFile("/sys/kernel/security/lockdown"))
				}
				return Have, release
			}},
		{"tcx", false, "programs hook in by clsact filters: as fast, but whoever replaces a device's clsact qdisc takes the datapath off it", "Linux 6.6 or newer",
			func() (State, string) { return is(bpf.HaveTCX() == nil), "" }},
		{"clsact filters", bpf.HaveTCX() != nil, "a kernel without tcx has no other way to hook in", "modprobe sch_ingress cls_bpf",
			func() (State, string) { return tried(bpf.HaveFilters()) }},
		{"decapsulation of merged frames (BPF_F_ADJ_ROOM_DECAP_L4_UDP)", false,
			"merged frames climb to the VXLAN device: TCP into a tap is 0.95 to 0.98 of plain routing, measured", "nothing yet: no released kernel has it",
			func() (State, string) {
				_, err := bpf.DecapFlag()
				if err != nil && !errors.Is(err, ebpf.ErrNotSupported) {
					return Unknown, err.Error()
				}
				return is(err == nil), ""
			}},
	}
}
