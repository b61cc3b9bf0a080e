package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
)

// setShares writes down what each tenant has of the table of flows, and may have.
func (d *Datapath) setShares(rows map[uint32]uint32) error {
	room, err := flowRoom(d.objs.Flows4)
	if err != nil {
		return err
	}
	quotas := shares(room, rows)
	for tenant, n := range rows {
		if tenant == 0 {
			continue
		}
		if err := d.objs.TenantFlows.Put(tenant, datapathFlowBudget{Rows: n, Quota: quotas[tenant]}); err != nil {
			return fmt.Errorf("write the flow budget of a tenant: %w", err)
		}
	}
	var gone []uint32
	err = each(d.objs.TenantFlows, func(tenant uint32, _ datapathFlowBudget) error {
		if _, here := rows[tenant]; !here {
			gone = append(gone, tenant)
		}
		return nil
	})
	for _, tenant := range gone {
		err = errors.Join(err, ignoreMissing(d.objs.TenantFlows.Delete(tenant)))
	}
	return err
}

// flowRoom is how many rows a table of flows takes before it forgets any: each CPU that
// the kernel may have, whichever this process may use, keeps up to 128 free ones at
// hand (LOCAL_FREE_TARGET, kernel/bpf/bpf_lru_list.h).
func flowRoom(table *ebpf.Map) (uint32, error) {
	cpus, err := ebpf.PossibleCPU()
	return roomFor(table.MaxEntries(), cpus), err
}

func roomFor(rows uint32, cpus int) uint32 {
	return rows - max(rows/10, min(rows/2, uint32(128*cpus)))
}

// fullness is how full a table of flows is that has a number of rows: from 1 on it
// forgets some, live ones too, without a word.
func fullness(rows int, table *ebpf.Map) (float64, error) {
	room, err := flowRoom(table)
	return float64(rows) / float64(max(room, 1)), err
}

// shares returns how many rows each tenant may have. Half of the room is kept for
// them in equal parts, whoever else is there; of what nobody holds and nobody is
// sure of, each may take half until the next count. So the table doesn't forget
// one tenant's flows for another's, unless three or more grow that much at once.
func shares(room uint32, rows map[uint32]uint32) map[uint32]uint32 {
	sure := room / 2 / uint32(max(len(rows), 1))
	free := room
	for _, n := range rows {
		free -= min(free, max(n, sure))
	}
	quotas := map[uint32]uint32{}
	for tenant, n := range rows {
		quotas[tenant] = max(max(n, sure)+free/2, 1)
	}
	return quotas
}
