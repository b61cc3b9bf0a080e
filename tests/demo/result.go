package demo

import (
	"encoding/json"
	"os"
	"path/filepath"
)

// A Result is out/demo.json. Every value was measured while the story played.
type Result struct {
	Claim                Move      `json:"claim"`
	Swap                 Move      `json:"swap"`
	ScratchMSToConfirmed float64   `json:"scratch_ms_to_confirmed"`
	Rollback             Rollback  `json:"rollback"`
	Faults               []Fault   `json:"faults"`
	Bystander            Bystander `json:"bystander"`
	Leaks                Leaks     `json:"leaks"`
	Residue              []string  `json:"residue"`
}

// A Move is one VM's way from one network to another. Times are in ms since the
// call of the API; addresses are the guest's own view and the wire's.
type Move struct {
	CABefore       string             `json:"ca_before"`
	CAAfter        string             `json:"ca_after"`
	NetworkBefore  string             `json:"network_before"`
	NetworkAfter   string             `json:"network_after"`
	MACBefore      string             `json:"mac_before"`
	MACAfter       string             `json:"mac_after"`
	PABefore       string             `json:"pa_before"`
	PAAfter        string             `json:"pa_after"`
	BootIDBefore   string             `json:"boot_id_before"`
	BootIDAfter    string             `json:"boot_id_after"`
	MSToFlip       float64            `json:"ms_to_flip"`
	MSToLease      float64            `json:"ms_to_lease"`
	MSToReachable  float64            `json:"ms_to_reachable"`
	MSToConfirmed  float64            `json:"ms_to_confirmed"`
	BlackoutMS     float64            `json:"blackout_ms"`
	Phases         map[string]float64 `json:"phases"`
	hostnameBefore string
	hostnameAfter  string
	rung           string
	source         string
}

// A Rollback is the swap that went wrong and was undone.
type Rollback struct {
	OK             bool    `json:"ok"`
	MS             float64 `json:"ms"`
	ReachableAtOld bool    `json:"reachable_at_old"`
	why            string
}

// A Fault is a program killed with -9 during a swap, and how the swap ended.
type Fault struct {
	Killed  string  `json:"killed"`  // "server at switched"
	Outcome string  `json:"outcome"` // committed or undone
	MS      float64 `json:"ms"`      // from the call until the end, the restart included
}

// Bystander counts the datagrams of two VMs that no swap concerns.
type Bystander struct {
	Sent int `json:"sent"`
	Lost int `json:"lost"`
}

// Leaks counts probes that reached the VM in the wrong network.
type Leaks struct {
	Probes        int `json:"probes"`
	OldAfterFlip  int `json:"old_after_flip"`
	NewBeforeFlip int `json:"new_before_flip"`
}

// Write puts r into a file as JSON.
func (r *Result) Write(file string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	return os.WriteFile(file, append(b, '\n'), 0o644)
}
