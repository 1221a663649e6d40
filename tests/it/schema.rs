//! The schema that is served, held against its snapshot and against the public contract.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use async_graphql::parser::parse_schema;
use async_graphql::parser::types::{
    FieldDefinition, InputValueDefinition, ServiceDocument, TypeKind, TypeSystemDefinition,
};

use crate::support::{Api, Backend};

fn file(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn the_served_schema_is_the_one_in_the_repository() {
    let served = Api::new(Backend::Memory).schema.sdl();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("schema.graphql");
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        fs::write(&path, &served).unwrap();
    }
    assert!(
        served == file("schema.graphql"),
        "the schema has changed; if that is meant, run the tests once with UPDATE_SNAPSHOTS=1"
    );
}

/// The contract is tests/contract.graphql. Subscriptions are the one part that is not served yet.
#[test]
fn the_public_contract_is_contained_in_it() {
    let contract = names(&parse_schema(file("tests/contract.graphql")).unwrap());
    let served = names(&parse_schema(Api::new(Backend::Memory).schema.sdl()).unwrap());
    let not_yet = |name: &str| {
        let name = name.split('.').next().unwrap();
        ["Subscription", "WorkflowEvent", "WorkflowEventKind"].contains(&name)
    };
    let missing: Vec<_> = contract
        .iter()
        .filter(|(name, kind)| !not_yet(name) && served.get(*name) != Some(kind))
        .collect();
    assert!(missing.is_empty(), "{missing:#?}");
    assert!(contract.len() > 100, "the contract was read");
}

/// Every type, field, argument and enum value by its path, with what it is.
fn names(document: &ServiceDocument) -> BTreeMap<String, String> {
    let mut names = BTreeMap::new();
    for definition in &document.definitions {
        let TypeSystemDefinition::Type(definition) = definition else { continue };
        let name = definition.node.name.node.to_string();
        match &definition.node.kind {
            TypeKind::Scalar => drop(names.insert(name, "scalar".to_owned())),
            TypeKind::Object(object) => {
                names.insert(name.clone(), "type".to_owned());
                for field in &object.fields {
                    add_field(&mut names, &name, &field.node);
                }
            }
            TypeKind::InputObject(input) => {
                names.insert(name.clone(), "input".to_owned());
                for field in &input.fields {
                    add_value(&mut names, &name, &field.node);
                }
            }
            TypeKind::Enum(values) => {
                names.insert(name.clone(), "enum".to_owned());
                for value in &values.values {
                    names.insert(format!("{name}.{}", value.node.value.node), "value".to_owned());
                }
            }
            other => panic!("{name} is {other:?}"),
        }
    }
    names
}

fn add_field(names: &mut BTreeMap<String, String>, owner: &str, field: &FieldDefinition) {
    let path = format!("{owner}.{}", field.name.node);
    for argument in &field.arguments {
        add_value(names, &path, &argument.node);
    }
    names.insert(path, field.ty.node.to_string());
}

fn add_value(names: &mut BTreeMap<String, String>, owner: &str, value: &InputValueDefinition) {
    let default = value
        .default_value
        .as_ref()
        .map(|default| format!(" = {}", default.node))
        .unwrap_or_default();
    names.insert(format!("{owner}.{}", value.name.node), format!("{}{default}", value.ty.node));
}
