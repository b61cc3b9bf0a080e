package bpf

import (
	"errors"
	"fmt"
	"runtime"
)

// setShares writes down what each tenant has of the table of flows, and may have.
func (d *Datapath) setShares(rows map[uint32]uint32) error {
	quotas := shares(roomFor(d.objs.Flows4.MaxEntries()), rows)
	for tenant, n := range rows {
		if tenant == 0 {
			continue
		}
		if err := d.objs.TenantFlows.Put(tenant, datapathFlowBudget{Rows: n, Quota: quotas[tenant]}); err != nil {
			return fmt.Errorf("write the flow budget of a tenant: %w", err)
		}
	}
	var gone []uint32
	err := each(d.objs.TenantFlows, func(tenant uint32, _ datapathFlowBudget) error {
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

// roomFor is how many rows a table of flows takes before it forgets any: each CPU
// keeps up to 128 free ones at hand (LOCAL_FREE_TARGET, kernel/bpf/bpf_lru_list.h).
func roomFor(rows uint32) uint32 {
	return rows - max(rows/10, min(rows/2, uint32(128*runtime.NumCPU())))
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
