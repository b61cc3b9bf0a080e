package server

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"replug/directory/store"
	"replug/directory/vnet"
)

// prefixes are what the view is made of.
func prefixes() []string {
	return []string{store.Hosts, store.Intents, store.Mappings, store.Groups, store.Services}
}

// parse reads a row's change; ok is false for a row of no concern.
func parse(e store.Event) (c change, ok bool, err error) {
	c.revision = e.Revision
	switch {
	case strings.HasPrefix(e.Key, store.Hosts):
		c.key.host = strings.TrimPrefix(e.Key, store.Hosts)
		c.host, err = row[vnet.HostInfo](e)
	case strings.HasPrefix(e.Key, store.Intents):
		c.key.host, c.port = store.Split(store.Intents, e.Key)
		c.intent, err = row[vnet.Intent](e)
	case strings.HasPrefix(e.Key, store.Mappings):
		err = c.parseMapping(e)
	case strings.HasPrefix(e.Key, store.Groups):
		err = c.parseGroup(e)
	case strings.HasPrefix(e.Key, store.Services):
		err = c.parseService(e)
	default:
		return c, false, nil
	}
	if err != nil {
		return c, false, fmt.Errorf("row %s is not readable: %w", e.Key, err)
	}
	return c, true, nil
}

// row reads a row's value; nil: it is gone.
func row[T any](e store.Event) (*T, error) {
	if e.Value == nil {
		return nil, nil
	}
	out := new(T)
	return out, json.Unmarshal(e.Value, out)
}

func (c *change) parseMapping(e store.Event) error {
	rest, err := c.parseNetwork(store.Mappings, e.Key)
	if err != nil {
		return err
	}
	if c.ca, err = vnet.ParseCA(rest); err != nil {
		return err
	}
	c.mapping, err = row[vnet.Mapping](e)
	if m := c.mapping; err == nil && m != nil && (m.VNI != c.vni || m.CA != c.ca) {
		err = fmt.Errorf("it speaks of %d %s", m.VNI, m.CA)
	}
	return err
}

func (c *change) parseGroup(e store.Event) (err error) {
	if c.key.group, err = c.parseNetwork(store.Groups, e.Key); err != nil {
		return err
	}
	c.group, err = row[vnet.Group](e)
	if g := c.group; err == nil && g != nil && (g.VNI != c.vni || g.Name != c.key.group) {
		err = fmt.Errorf("it speaks of %d %s", g.VNI, g.Name)
	}
	return err
}

func (c *change) parseService(e store.Event) (err error) {
	if c.key.service, err = c.parseNetwork(store.Services, e.Key); err != nil {
		return err
	}
	c.service, err = row[vnet.Service](e)
	if s := c.service; err == nil && s != nil && (s.VNI != c.vni || s.Name != c.key.service) {
		err = fmt.Errorf("it speaks of %d %s", s.VNI, s.Name)
	}
	return err
}

// parseNetwork reads the network of a row's key, and returns what is left of it.
func (c *change) parseNetwork(prefix, key string) (rest string, err error) {
	network, rest := store.Split(prefix, key)
	vni, err := strconv.ParseUint(network, 10, 32)
	if err != nil || !vnet.VNI(vni).Valid() {
		return "", vnet.ErrVNI
	}
	c.vni = vnet.VNI(vni)
	return rest, nil
}
