// Package tap writes test results in the Test Anything Protocol.
//
// The validation programs of the OCI runtime-tools are written against a package of this name that
// Debian does not have. This is the part of its interface that they call.
package tap

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
)

// T counts the results of one program.
type T struct {
	count     int
	directive string
}

// New makes an empty count.
func New() *T { return &T{} }

// Header announces the protocol, and the number of results if it is known (not 0).
func (t *T) Header(planned int) {
	fmt.Println("TAP version 13")
	if planned > 0 {
		fmt.Printf("1..%d\n", planned)
	}
}

// AutoPlan tells at the end how many results there were.
func (t *T) AutoPlan() { fmt.Printf("1..%d\n", t.count) }

// Ok writes one result.
func (t *T) Ok(passed bool, description string) {
	t.count++
	word := "ok"
	if !passed {
		word = "not ok"
	}
	line := fmt.Sprintf("%s %d - %s", word, t.count, oneLine(description))
	if t.directive != "" {
		line += " # " + t.directive
		t.directive = ""
	}
	fmt.Fprintln(os.Stdout, line)
}

// Pass writes a result that is good.
func (t *T) Pass(description string) { t.Ok(true, description) }

// Fail writes a result that is bad.
func (t *T) Fail(description string) { t.Ok(false, description) }

// Skip writes results of tests that were not made.
func (t *T) Skip(count int, reason string) {
	for i := 0; i < count; i++ {
		t.directive = "SKIP " + oneLine(reason)
		t.Ok(true, "")
	}
}

// Todo marks the next result as one that is not expected to be good yet.
func (t *T) Todo() *T {
	t.directive = "TODO"
	return t
}

// Diagnostic writes a remark.
func (t *T) Diagnostic(message string) {
	for _, line := range strings.Split(strings.TrimRight(message, "\n"), "\n") {
		fmt.Println("# " + line)
	}
}

// Diagnosticf writes a remark, formatted.
func (t *T) Diagnosticf(format string, a ...interface{}) { t.Diagnostic(fmt.Sprintf(format, a...)) }

// YAML writes a value that explains the last result. JSON is YAML.
func (t *T) YAML(value interface{}) error {
	text, err := json.MarshalIndent(value, "  ", "  ")
	if err != nil {
		return err
	}
	fmt.Printf("  ---\n  %s\n  ...\n", text)
	return nil
}

func oneLine(text string) string { return strings.ReplaceAll(text, "\n", " ") }
