package bpf

import (
	_ "embed"
	"regexp"
	"strings"
	"sync"
)

// reasonText is where each reason is explained, once.
//
//go:embed reason.h
var reasonText string

var dropTexts = sync.OnceValue(func() map[string]string {
	texts := map[string]string{}
	for _, m := range regexp.MustCompile(`(?m)^\tDROP_(\w+),\s*/\* (.*) \*/$`).FindAllStringSubmatch(reasonText, -1) {
		texts[strings.ToLower(m[1])] = m[2]
	}
	return texts
})

// DropText says what a reason, as [DropReason.String] prints it, means; "" for
// one that there is not.
func DropText(reason string) string { return dropTexts()[reason] }
