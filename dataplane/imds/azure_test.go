package imds_test

import (
	"encoding/base64"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"replug/dataplane/imds"
	"replug/directory/vnet"
)

const (
	instancePath    = "/metadata/instance?api-version=2021-08-01&extended=true"
	reprovisionPath = "/metadata/reprovisiondata?api-version=2019-06-01"
)

// wire makes a request one of cloud-init's to the wire server.
func wire(r *http.Request) {
	r.Header.Del("Metadata")
	r.Header.Set("x-ms-agent-name", "WALinuxAgent")
	r.Header.Set("x-ms-version", "2012-11-30")
	r.Host = "168.63.129.16"
}

// readyBody is what cloud-init 22.4.2 sends, word by word.
const readyBody = `<?xml version="1.0" encoding="utf-8"?>
<Health xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"
 xmlns:xsd="http://www.w3.org/2001/XMLSchema">
  <GoalStateIncarnation>%s</GoalStateIncarnation>
  <Container>
    <ContainerId>5f7c1a2e-3b4d-4c6f-8a9b-2c3d4e5f6a7b</ContainerId>
    <RoleInstanceList>
      <Role>
        <InstanceId>vm-17</InstanceId>
        <Health>
          <State>%s</State>
          %s
        </Health>
      </Role>
    </RoleInstanceList>
  </Container>
</Health>
`

var guest17 = imds.Guest{
	Personality: vnet.PersonalityCloudInit, UUID: "5f7c1a2e-3b4d-4c6f-8a9b-2c3d4e5f6a7b", MAC: vnet.MAC{0x02, 0x6c, 0x1d, 0x2e, 0x3f, 0x47},
	Addrs: []vnet.Addr{{CA: mustCA("10.17.34.62"), Bits: 23}, {CA: mustCA("fd17:34::62"), Bits: 64}},
}

func mustCA(s string) vnet.CA {
	ca, err := vnet.ParseCA(s)
	if err != nil {
		panic(err)
	}
	return ca
}

// get asks and returns the code and the body.
func (s *service) get(t *testing.T, c *http.Client, path string, edit ...func(*http.Request)) (int, string) {
	t.Helper()
	code, body, err := s.ask(c, "GET", path, "", edit...)
	if err != nil {
		t.Fatalf("GET %s: %v", path, err)
	}
	return code, body
}

// is asks and compares the code.
func (s *service) is(t *testing.T, c *http.Client, path string, want int, edit ...func(*http.Request)) string {
	t.Helper()
	code, body := s.get(t, c, path, edit...)
	if code != want {
		t.Fatalf("GET %s: %d %s, want %d", path, code, body, want)
	}
	return body
}

// health reports, and returns the code.
func (s *service) health(t *testing.T, c *http.Client, incarnation, state, details string) int {
	t.Helper()
	code, _, err := s.ask(c, "POST", "/machine?comp=health", fmt.Sprintf(readyBody, incarnation, state, details), wire)
	if err != nil {
		t.Fatal(err)
	}
	return code
}

// ppsType reads the instance's.
func (s *service) ppsType(t *testing.T, c *http.Client) string {
	t.Helper()
	var i struct {
		Extended struct{ Compute struct{ PPSType string } }
	}
	if err := json.Unmarshal([]byte(s.is(t, c, instancePath, 200)), &i); err != nil {
		t.Fatal(err)
	}
	return i.Extended.Compute.PPSType
}

// incarnation reads the goal state's.
func (s *service) incarnation(t *testing.T, c *http.Client) string {
	t.Helper()
	var g struct {
		Incarnation string
		Container   struct {
			ContainerId      string
			RoleInstanceList struct{ RoleInstance struct{ InstanceId string } }
		}
	}
	if err := xml.Unmarshal([]byte(s.is(t, c, "/machine/?comp=goalstate", 200, wire)), &g); err != nil {
		t.Fatal(err)
	}
	if g.Container.ContainerId != guest17.UUID || g.Container.RoleInstanceList.RoleInstance.InstanceId != "vm-17" {
		t.Errorf("goal state %+v", g)
	}
	return g.Incarnation
}

// TestPool is the whole way of a stock cloud-init through the pool, as far as HTTP
// goes: what it asks, in its order, and what must not be believed on the way. S37 to S41.
func TestPool(t *testing.T) {
	s := serve(t)
	pooled, claimed := guest(t, 23, before), guest(t, 23, after)
	s.Publish(23, before, &vnet.Document{Tag: vnet.TagPartial, Instance: "vm-17", Hostname: "vm-17"}, guest17)
	if got := s.ppsType(t, pooled); got != "Running" {
		t.Errorf("in the pool: ppsType %q", got)
	}
	if s.Polls(23) {
		t.Error("a guest that waits for its flap is said to poll")
	}
	s.is(t, pooled, reprovisionPath, 404)
	if !s.Polls(23) {
		t.Error("a guest that polls in the pool was not heard")
	}
	pool := s.incarnation(t, pooled)
	for range 2 { // the second time it is taken without an effect
		if code := s.health(t, pooled, pool, "Ready", ""); code != 200 {
			t.Fatalf("first ready: %d", code)
		}
	}
	if r := s.report(t); r.Kind != vnet.ReportPartial || !r.OK || r.Epoch != before {
		t.Errorf("first ready became %+v", r)
	}
	s.nothing(t, "23: report again")

	s.Withdraw(23)
	s.is(t, claimed, instancePath, 404)
	s.is(t, claimed, reprovisionPath, 404)
	s.is(t, claimed, "/machine/?comp=goalstate", 404, wire)
	if code := s.health(t, claimed, fmt.Sprint(uint64(after)), "Ready", ""); code != 404 {
		t.Errorf("ready before the guest was seen: %d", code)
	}
	s.Renew(23, true)
	s.is(t, claimed, reprovisionPath, 503)
	s.Renew(23, false)
	s.is(t, claimed, reprovisionPath, 404)
	s.Renew(23, true)
	s.nothing(t, "23: nothing published")

	doc := &vnet.Document{Instance: "vm-17", Hostname: "web-1", User: "ann", SSHKeys: []string{"ssh-ed25519 AAAAC3 ann"}, UserData: []byte("#!/bin/sh\ntrue\n")}
	s.Publish(23, after, doc, guest17)
	if s.Polls(23) {
		t.Error("it left the pool, and is said to poll there")
	}
	for range 2 { // once more after a reboot
		checkOVF(t, s.is(t, claimed, reprovisionPath, 200), doc)
	}
	checkInstance(t, s.is(t, claimed, instancePath, 200))
	final := s.incarnation(t, claimed)
	if final == pool {
		t.Fatalf("both goal states have incarnation %s", pool)
	}
	if code := s.health(t, claimed, pool, "Ready", ""); code != 200 {
		t.Errorf("ready of the pool's incarnation: %d", code)
	}
	s.nothing(t, "23: report on an old incarnation")
	if code := s.health(t, claimed, fmt.Sprint(uint64(after)+1), "Ready", ""); code != 409 {
		t.Errorf("ready of an unknown incarnation: %d", code)
	}
	s.nothing(t, "23: report on an unknown incarnation")
	s.health(t, claimed, final, "NotReady", "<Details><SubStatus>ProvisioningFailed</SubStatus><Description>no &lt;disk&gt;</Description></Details>")
	if r := s.report(t); r.OK || r.Kind != vnet.ReportFinal || r.Error != "ProvisioningFailed: no <disk>" {
		t.Errorf("not ready became %+v", r)
	}
	s.health(t, claimed, final, "Ready", "")
	if r := s.report(t); !r.OK || r.Kind != vnet.ReportFinal || r.Epoch != after {
		t.Errorf("second ready became %+v", r)
	}
	s.health(t, claimed, final, "NotReady", "")
	s.nothing(t, "23: report again")
}

// report is what the parent was handed.
func (s *service) report(t *testing.T) vnet.GuestReport {
	t.Helper()
	select {
	case r := <-s.reports:
		return r
	default:
		t.Fatal("no report was handed on")
		return vnet.GuestReport{}
	}
}

// nothing wants that no report was handed on, and that this was counted instead.
func (s *service) nothing(t *testing.T, counted string) {
	t.Helper()
	select {
	case r := <-s.reports:
		t.Errorf("handed on: %+v", r)
	default:
	}
	if s.count(counted) == 0 {
		t.Errorf("%q was not counted: %v", counted, s.refused)
	}
}

func checkOVF(t *testing.T, body string, doc *vnet.Document) {
	t.Helper()
	const ns = "http://schemas.microsoft.com/windowsazure"
	var o struct {
		XMLName             xml.Name `xml:"http://schemas.dmtf.org/ovf/environment/1 Environment"`
		ProvisioningSection struct {
			LinuxProvisioningConfigurationSet struct{ HostName, UserName, DisableSshPasswordAuthentication, CustomData string }
		}
		PlatformSettingsSection struct {
			PlatformSettings struct{ PreprovisionedVm string }
		}
	}
	if err := xml.Unmarshal([]byte(body), &o); err != nil {
		t.Fatalf("%v in %s", err, body)
	}
	set := o.ProvisioningSection.LinuxProvisioningConfigurationSet
	data, _ := base64.StdEncoding.DecodeString(set.CustomData)
	if set.HostName != doc.Hostname || set.UserName != doc.User || string(data) != string(doc.UserData) || set.DisableSshPasswordAuthentication != "true" {
		t.Errorf("ovf-env.xml says %+v, user data %q", set, data)
	}
	if o.PlatformSettingsSection.PlatformSettings.PreprovisionedVm != "false" || strings.Count(body, `xmlns="`+ns+`"`) == 0 {
		t.Errorf("ovf-env.xml: %s", body)
	}
}

func checkInstance(t *testing.T, body string) {
	t.Helper()
	var i struct {
		Compute struct {
			OSProfile  struct{ ComputerName, AdminUsername string }
			PublicKeys []struct{ KeyData string }
			UserData   string
		}
		Network struct {
			Interface []struct {
				MacAddress string
				IPv4       struct {
					IPAddress []struct{ PrivateIPAddress string }
					Subnet    []struct{ Address, Prefix string }
				}
				IPv6 struct {
					IPAddress []struct{ PrivateIPAddress string }
				}
			}
		}
		Extended struct{ Compute struct{ PPSType string } }
	}
	if err := json.Unmarshal([]byte(body), &i); err != nil {
		t.Fatal(err)
	}
	nic := i.Network.Interface[0]
	got := fmt.Sprintf("%v %v %s %v %s", i.Compute.OSProfile, i.Compute.PublicKeys, i.Compute.UserData, nic, i.Extended.Compute.PPSType)
	want := "{web-1 ann} [{ssh-ed25519 AAAAC3 ann}] IyEvYmluL3NoCnRydWUK {026C1D2E3F47 {[{10.17.34.62}] [{10.17.34.0 23}]} {[{fd17:34::62}]}} None"
	if got != want {
		t.Errorf("instance\n%s, want\n%s", got, want)
	}
}

// TestAzureForms are the rest of what a guest may ask there.
func TestAzureForms(t *testing.T) {
	s := serve(t)
	c := guest(t, 23, before)
	savable := guest17
	savable.Personality = vnet.PersonalityCloudInitSavable
	s.Publish(23, before, &vnet.Document{Tag: vnet.TagPartial, Instance: "vm-17"}, savable)
	if got := s.ppsType(t, c); got != "Savable" {
		t.Errorf("ppsType %q, want Savable", got)
	}
	s.is(t, c, "/metadata/instance", 400)
	s.is(t, c, "/metadata/instance/compute?api-version=2021-08-01", 404)
	if body := s.is(t, c, "/metadata/instance?api-version=2019-06-01", 200); strings.Contains(body, "ppsType") {
		t.Errorf("without extended: %s", body)
	}
	if body := s.is(t, c, "/metadata/instance/network?api-version=2021-08-01", 200); !strings.HasPrefix(body, `{"interface":[{`) {
		t.Errorf("network: %s", body)
	}
	if body := s.is(t, c, instancePath, 200); !strings.Contains(body, `"publicKeys":[]`) {
		t.Errorf("no empty list of keys, the guest would ask for certificates: %s", body)
	}
	s.is(t, c, "/machine/?comp=goalstate", 400, func(r *http.Request) { wire(r); r.Header.Del("x-ms-version") })
	s.is(t, c, "/machine/?comp=versions", 200, func(r *http.Request) { wire(r); r.Header.Del("x-ms-version") })
	s.is(t, c, "/machine/?comp=certificates", 404, wire)
	s.is(t, c, "/machine?comp=health", 405, wire)
}
