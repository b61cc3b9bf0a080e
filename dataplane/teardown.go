package dataplane

import (
	"errors"
	"os"
	"path/filepath"

	"replug/dataplane/netdev"
)

// Teardown takes the datapath out of force and removes the agent's devices and
// records. Ports carry nothing from then on; machines go on without a network.
// It returns [ErrLocked] while an agent runs.
func Teardown(c Config) error {
	state, err := openState(c.StateDir)
	if err != nil {
		return err
	}
	defer state.close()
	errs := []error{unloadMaps(c.pins())}
	ours, err := netdev.Taps()
	errs = append(errs, err)
	for _, tap := range ours {
		errs = append(errs, netdev.Delete(tap.Name))
	}
	errs = append(errs, netdev.Delete(netdev.VXLANName), netdev.Delete(netdev.IMDSNear))
	if c.PAPrefix.IsValid() {
		errs = append(errs, netdev.RemoveBlackhole(c.PAPrefix))
	}
	return errors.Join(append(errs, os.RemoveAll(filepath.Join(c.StateDir, "ports")))...)
}
